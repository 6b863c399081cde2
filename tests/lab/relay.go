package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
)

// Fault is what a Relay makes of a KDC's reply. answer asks the KDC; what is returned goes to the
// client as it is, record mark (RFC 4120 7.2.2) included, and nil closes the connection.
type Fault func(ctx context.Context, answer func() []byte) []byte

// Relay stands between clients and a realm's KDC, on TCP.
type Relay struct {
	Conf string // krb5.conf of a client that knows this KDC only

	l      net.Listener
	kdc    string
	ctx    context.Context
	cancel context.CancelFunc
	conns  sync.WaitGroup
	mu     sync.Mutex
	fault  Fault // nil: none
}

// Relay starts one without a fault. lines are added to [libdefaults] of its krb5.conf. Close ends
// it.
func (r *Realm) Relay(lines ...string) (*Relay, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Relay{Conf: r.Path("relay.conf"), l: l, kdc: fmt.Sprintf("127.0.0.1:%d", r.port)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	text := "  udp_preference_limit = 1\n"
	for _, line := range lines {
		text += "  " + line + "\n"
	}
	if err := os.WriteFile(s.Conf, fmt.Appendf(nil, clientConf, text, l.Addr().(*net.TCPAddr).Port), 0o644); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	s.conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.conns.Go(func() { s.serve(c) })
		}
	})
	return s, nil
}

// Close ends the relay: from now on nobody listens at its address.
func (s *Relay) Close() error {
	s.cancel()
	err := s.l.Close()
	s.conns.Wait()
	return err
}

// Set has the replies go through f from now on; nil is none.
func (s *Relay) Set(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

func (s *Relay) serve(c net.Conn) {
	defer c.Close()
	defer context.AfterFunc(s.ctx, func() { c.Close() })()
	for {
		req, err := readKDC(c)
		if err != nil {
			return
		}
		s.mu.Lock()
		f := s.fault
		s.mu.Unlock()
		answer := func() []byte { return askKDC(s.kdc, req) }
		var rep []byte
		if f == nil {
			rep = answer()
		} else {
			rep = f(s.ctx, answer)
		}
		if rep == nil {
			return
		}
		if _, err := c.Write(rep); err != nil {
			return
		}
	}
}

// readKDC reads one message with its record mark.
func readKDC(r io.Reader) ([]byte, error) {
	b := make([]byte, 4)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(b)
	if n > 1<<20 {
		return nil, fmt.Errorf("a message of %d bytes", n)
	}
	b = append(b, make([]byte, n)...)
	_, err := io.ReadFull(r, b[4:])
	return b, err
}

func askKDC(address string, req []byte) []byte {
	c, err := net.DialTimeout("tcp", address, Patience)
	if err != nil {
		return nil
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(Patience))
	if _, err := c.Write(req); err != nil {
		return nil
	}
	rep, err := readKDC(c)
	if err != nil {
		return nil
	}
	return rep
}

// Hold answers after d, or never when the relay closes before.
func Hold(d time.Duration) Fault {
	return func(ctx context.Context, answer func() []byte) []byte {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(d):
			return answer()
		}
	}
}

// Say answers with these bytes, whatever was asked.
func Say(b []byte) Fault {
	return func(context.Context, func() []byte) []byte { return b }
}

// HangUp closes the connection.
func HangUp(context.Context, func() []byte) []byte { return nil }

// Half sends the first half of an answer, and nothing more until the relay closes.
func Half(ctx context.Context, answer func() []byte) []byte {
	b := answer()
	return b[:len(b)/2]
}

// ForgeAS changes AS-REPs whose client has its keys in the keytab; other answers it passes on. The
// forged reply's encrypted part is good.
func ForgeAS(keytabPath string, forge func(rep *messages.ASRep)) (Fault, error) {
	kt, err := keytab.Load(keytabPath)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, answer func() []byte) []byte {
		b := answer()
		var rep messages.ASRep
		if len(b) < 4 || rep.Unmarshal(b[4:]) != nil {
			return b // a KRB-ERROR
		}
		key, _, err := kt.GetEncryptionKey(rep.CName, rep.CRealm, 0, rep.EncPart.EType)
		if err != nil {
			return nil
		}
		plain, err := crypto.DecryptEncPart(rep.EncPart, key, 3) // RFC 4120 7.5.1: AS-REP, client's key
		if err != nil {
			return nil
		}
		if err := rep.DecryptedEncPart.Unmarshal(plain); err != nil {
			return nil
		}
		forge(&rep)
		if plain, err = rep.DecryptedEncPart.Marshal(); err != nil {
			return nil
		}
		kvno := rep.EncPart.KVNO
		if rep.EncPart, err = crypto.GetEncryptedData(plain, key, 3, kvno); err != nil {
			return nil
		}
		out, err := rep.Marshal()
		if err != nil {
			return nil
		}
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(out))), out...)
	}, nil
}

// KDCAt starts another KDC of the realm whose clock is offset away from ours, and returns the
// krb5.conf of its clients, with lines added to [libdefaults].
func (r *Realm) KDCAt(offset time.Duration, lines ...string) (conf string, kdc *Process, err error) {
	return r.anotherKDC(kdcConf, r.ShiftEnv(offset), lines)
}

// IndicatingKDC starts another KDC of the realm, which says in its tickets by an authentication
// indicator of that name that the client has proven with SPAKE to know the password. It returns the
// krb5.conf of its clients.
func (r *Realm) IndicatingKDC(indicator string) (conf string, err error) {
	const groups = "spake_preauth_groups = edwards25519"
	kdc := strings.Replace(kdcConf, "[libdefaults]\n", "[libdefaults]\n  "+groups+"\n", 1)
	kdc = strings.Replace(kdc, "    max_life", "    spake_preauth_indicator = "+indicator+"\n    max_life", 1)
	conf, _, err = r.anotherKDC(kdc, nil, []string{groups})
	return conf, err
}

// anotherKDC starts another KDC of the realm, with kdc for its configuration, and lines for its
// clients'.
func (r *Realm) anotherKDC(kdc string, env, lines []string) (conf string, p *Process, err error) {
	port, err := FreePort()
	if err != nil {
		return "", nil, err
	}
	conf, profile := r.Path("another.conf"), r.Path("another-kdc.conf")
	text := ""
	for _, line := range lines {
		text += "  " + line + "\n"
	}
	err = errors.Join(
		os.WriteFile(conf, fmt.Appendf(nil, clientConf, text, port), 0o644),
		os.WriteFile(profile, fmt.Appendf(nil, kdc, r.kdcDir(), port), 0o644))
	if err != nil {
		return "", nil, err
	}
	p, err = r.runKDC(port, append(env, "KRB5_KDC_PROFILE="+profile))
	return conf, p, err
}
