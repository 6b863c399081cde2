// Demo shows in under a minute what gssproxyd is for: a server that cannot read its keytab accepts
// Kerberos clients. The realm, the keys, the plugin and the daemon are made for it in a temporary
// directory and are gone afterwards. The programs are Debian's: krb5kdc, gss-server and gss-client.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gssproxyd/tests/lab"
)

func main() {
	binary := flag.String("gssproxyd", "bin/gssproxyd", "the daemon to show")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	path, err := filepath.Abs(*binary)
	if err == nil {
		err = show(ctx, path)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
}

const (
	service   = "host@" + lab.Host
	principal = "host/" + lab.Host
)

var begin = time.Now()

// tell says what comes next, or is now so.
func tell(format string, args ...any) {
	fmt.Printf("%5.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
}

// quote shows the lines of a program's output that contain one of the words.
func quote(who, output string, words ...string) {
	for line := range strings.Lines(output) {
		for _, w := range words {
			if strings.Contains(line, w) {
				fmt.Printf("          %s: %s\n", who, strings.TrimPrefix(strings.TrimSpace(line), who+": "))
				break
			}
		}
	}
}

func show(ctx context.Context, binary string) (err error) {
	tell("Raising a throw-away realm %s, with the user alice and the service %s", lab.Name, principal)
	r, err := lab.UpWithoutTools(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if e := r.Close(); err == nil {
			err = e
		}
		if err == nil {
			tell("All of it is stopped, and %s removed", r.Dir)
		}
	}()
	d := &demo{Realm: r, binary: binary, keytab: filepath.Join(r.Dir, "host.keytab")}
	for _, step := range []func(*demo) error{keys, without, with, replay, rotate} {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := step(d); err != nil {
			return err
		}
	}
	return nil
}

type demo struct {
	*lab.Realm
	binary, keytab string
	daemon         *lab.Daemon // once it runs
}

func keys(d *demo) error {
	if err := d.RandKey(principal); err != nil {
		return err
	}
	if _, err := d.Keytab(filepath.Base(d.keytab), principal); err != nil {
		return err
	}
	info, err := os.Stat(d.keytab)
	if err != nil {
		return err
	}
	tell("The service's keytab is root's, %v. The server runs as nobody and cannot read it:", info.Mode())
	out, err := d.Run(lab.Nobody, nil, "/bin/cat", d.keytab)
	if err == nil {
		return errors.New("nobody can read the keytab")
	}
	quote("/bin/cat", out, "denied")
	return nil
}

func without(d *demo) error {
	p, err := d.Start(d.Command(lab.Nobody, []string{"KRB5_KTNAME=" + d.keytab}, "/usr/bin/gss-server", service), d.Path("gss-server.log"))
	if err != nil {
		return err
	}
	defer p.Kill()
	if err := p.WaitOutput("GSS-API error", 10*time.Second); err != nil {
		return err
	}
	tell("So without gssproxyd it cannot serve:")
	quote("gss-server", p.Output(), "Permission denied", "Keytab")
	return nil
}

func with(d *demo) error {
	var err error
	if d.daemon, err = d.Ours(lab.Options{Keytab: d.keytab, Binary: d.binary}); err != nil {
		return err
	}
	tell("gssproxyd runs as root, pid %d, at %s", d.daemon.PID(), d.daemon.Socket)
	env, err := d.Kinit("alice", "alice")
	if err != nil {
		return err
	}
	server, client, err := serve(d, env)
	if err != nil {
		return err
	}
	tell("The same server, still nobody, has our plugin and asks gssproxyd. It serves alice, and proves to her who it is:")
	quote("gss-server", server, "Accepted connection: ", "Received message")
	quote("gss-client", client, "GSS_C_MUTUAL_FLAG", "Signature verified.")
	return nil
}

// serve has alice's gss-client say hello to a gss-server that is nobody's and has the keys only
// through gssproxyd. It returns what they wrote.
func serve(d *demo, alice []string) (server, client string, err error) {
	s, err := d.GSSServer(lab.Nobody, d.daemon.PluginEnv(), service)
	if err != nil {
		return "", "", err
	}
	if client, err = d.GSSClient(lab.Nobody, alice, s, service, "hello"); err != nil {
		return "", "", fmt.Errorf("%w\ngss-server said:\n%s", err, s.Output())
	}
	if server, err = s.Wait(); err != nil {
		return "", "", err
	}
	if !strings.Contains(server, "alice@"+lab.Name) || !strings.Contains(client, "Signature verified.") {
		return "", "", fmt.Errorf("gss-server said:\n%s\ngss-client said:\n%s", server, client)
	}
	return server, client, nil
}

func replay(d *demo) error {
	env, err := d.Kinit("alice", "alice")
	if err != nil {
		return err
	}
	token, err := overhear(d, env)
	if err != nil {
		return err
	}
	if err := accept(d, token); err != nil {
		return err
	}
	if err := d.daemon.Crash(); err != nil {
		return err
	}
	err = accept(d, token)
	if err == nil {
		return errors.New("a token was accepted twice")
	}
	if !strings.Contains(err.Error(), "[replay]") {
		return fmt.Errorf("a token that comes twice is refused for another reason than [replay]: %w", err)
	}
	tell("A token is accepted, gssproxyd killed (SIGKILL) and started, and the same token sent again:")
	quote("gssproxyd", err.Error(), "")
	return nil
}

func rotate(d *demo) error {
	env, err := d.Kinit("alice", "alice")
	if err != nil {
		return err
	}
	if _, err := d.Run(lab.Nobody, env, "/usr/bin/kvno", principal); err != nil { // a ticket for the old key, to use later
		return err
	}
	if err := d.Rotate(principal); err != nil {
		return err
	}
	next, err := d.Keytab("next.keytab", principal)
	if err != nil {
		return err
	}
	if err := os.Rename(next, d.keytab); err != nil {
		return err
	}
	tell("The service gets new keys and gssproxyd is not told. Alice comes with an old ticket and a new one:")
	for _, which := range []string{"old", "new"} {
		server, _, err := serve(d, env)
		if err != nil {
			return fmt.Errorf("the %s ticket: %w", which, err)
		}
		quote(which+" ticket", server, "Accepted connection: ")
		if env, err = d.Kinit("alice", "alice"); err != nil {
			return err
		}
	}
	return nil
}

// overhear returns a first token of alice's for the service, as who is on the way between her and a
// server gets it.
func overhear(d *demo, alice []string) ([]byte, error) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	client, err := d.Start(d.Command(lab.Nobody, alice, "/usr/bin/gss-client", "-port", port, "127.0.0.1", service, "hello"), d.Path("gss-client.log"))
	if err != nil {
		return nil, err
	}
	defer client.Kill()
	deadline := time.Now().Add(10 * time.Second)
	l.SetDeadline(deadline)
	c, err := l.Accept()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(deadline)
	for {
		// What gss-client sends is a byte of flags, a length in four bytes, and a token.
		var head [5]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return nil, err
		}
		token := make([]byte, min(binary.BigEndian.Uint32(head[1:]), 64<<10))
		if _, err := io.ReadFull(c, token); err != nil {
			return nil, err
		}
		if len(token) > 0 {
			return token, nil
		}
	}
}

// accept has the daemon accept a token.
func accept(d *demo, token []byte) error {
	w, err := d.daemon.Wire()
	if err != nil {
		return err
	}
	defer w.Close()
	res, err := w.Accept(token, nil)
	if err != nil {
		return err
	}
	if s := res.Status; s.MajorStatus != 0 {
		return errors.New(strings.TrimSuffix(string(s.MinorStatusString), "\x00"))
	}
	return nil
}
