package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
)

// Kadmind is a realm's kadmind, with an empty kadm5.acl: nobody may do more than everybody may with
// his own entry.
type Kadmind struct {
	Conf    string // krb5.conf of its clients
	Kadmin  string // "127.0.0.1:port" for kadmin
	Kpasswd string // and for kpasswd

	r *Realm
}

// Kadmind starts a kadmind of the realm. lines are added to the realm's section of its kdc.conf, where
// the last line of a kind counts.
func (r *Realm) Kadmind(lines ...string) (*Kadmind, error) {
	admin, err := FreePort()
	if err != nil {
		return nil, err
	}
	passwd, err := FreePort()
	if err != nil {
		return nil, err
	}
	k := &Kadmind{Kadmin: fmt.Sprintf("127.0.0.1:%d", admin), Kpasswd: fmt.Sprintf("127.0.0.1:%d", passwd), r: r}
	lines = append([]string{"kadmind_listen = " + k.Kadmin, "kpasswd_listen = " + k.Kpasswd}, lines...)
	profile := r.Path("kadmind-kdc.conf")
	text := strings.Replace(fmt.Sprintf(kdcConf, r.kdcDir(), r.port), "    max_life", "    "+strings.Join(lines, "\n    ")+"\n    max_life", 1)
	err = errors.Join(os.WriteFile(profile, []byte(text), 0o644), os.WriteFile(r.kdcDir()+"/kadm5.acl", nil, 0o600))
	if err != nil {
		return nil, err
	}
	if k.Conf, err = k.Via(k.Kadmin, k.Kpasswd); err != nil {
		return nil, err
	}
	p, err := r.Start(r.Command(Root, []string{"KRB5_KDC_PROFILE=" + profile}, "/usr/sbin/kadmind", "-nofork", "-r", Name), r.Path("kadmind.out"))
	if err != nil {
		return nil, err
	}
	return k, p.wait(Patience, "answer", func() bool { return Listening(admin) && Listening(passwd) })
}

// Via writes the krb5.conf of clients that find kadmin and kpasswd at other addresses.
func (k *Kadmind) Via(kadmin, kpasswd string) (conf string, err error) {
	conf = k.r.Path("kadmind.conf")
	text := strings.Replace(fmt.Sprintf(clientConf, "", k.r.port), "\n  }", fmt.Sprintf("\n    admin_server = %s\n    kpasswd_server = %s\n  }", kadmin, kpasswd), 1)
	return conf, os.WriteFile(conf, []byte(text), 0o644)
}

// Swallow stands in front of a server whose messages have a length of four octets before them, the
// highest bit not counting: a KDC, or one of kadmin or kpasswd. Of each connection it passes on all
// messages but the server's with that number, from 0 on: it ends the connection in the place of that
// one. It returns its address, and what ends it.
func Swallow(server string, number int) (address string, end func(), err error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	var conns sync.WaitGroup
	serve := func(client net.Conn) {
		defer client.Close()
		behind, err := net.Dial("tcp4", server)
		if err != nil {
			return
		}
		var there sync.WaitGroup
		defer there.Wait()
		defer behind.Close()
		there.Go(func() {
			io.Copy(behind, client)
			behind.Close()
		})
		for i := 0; ; i++ {
			var message bytes.Buffer
			if _, err := io.CopyN(&message, behind, 4); err != nil {
				break
			}
			n := binary.BigEndian.Uint32(message.Bytes()) &^ (1 << 31)
			if _, err := io.CopyN(&message, behind, int64(n)); err != nil || i == number {
				break
			}
			client.Write(message.Bytes())
		}
		client.Close()
	}
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { serve(c) })
		}
	})
	return l.Addr().String(), func() { l.Close(); conns.Wait() }, nil
}
