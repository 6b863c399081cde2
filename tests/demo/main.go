// Demo shows in under a minute what gssproxyd is for: a server that cannot read its keytab accepts Kerberos
// clients. The realm, the keys and the daemon are made for it in a temporary directory and are gone afterwards.
// The programs are Debian's: krb5kdc, gss-server, gss-client, and the plugin of the gssproxy package.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
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

const service = "host@" + lab.Host

var begin = time.Now()

// tell says one thing that is now so.
func tell(format string, args ...any) {
	fmt.Printf("%5.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
}

// quote shows the lines of a program's output that contain one of the words.
func quote(who, output string, words ...string) {
	for line := range strings.Lines(output) {
		for _, w := range words {
			if strings.Contains(line, w) {
				fmt.Printf("           %s: %s\n", who, strings.TrimSpace(line))
				break
			}
		}
	}
}

func show(ctx context.Context, binary string) (err error) {
	tell("raising the realm %s", lab.Name)
	r, err := lab.Up(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if e := r.Close(); err == nil {
			err = e
		}
		if err == nil {
			tell("everything stopped, %s removed", r.Dir)
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
	if err := d.RandKey("host/" + lab.Host); err != nil {
		return err
	}
	if _, err := d.Keytab(filepath.Base(d.keytab), "host/"+lab.Host); err != nil {
		return err
	}
	info, err := os.Stat(d.keytab)
	if err != nil {
		return err
	}
	tell("its KDC runs; host/%s has its keys in %s, %v, root's", lab.Host, d.keytab, info.Mode())
	out, err := d.Run(lab.Nobody, nil, "/bin/cat", d.keytab)
	if err == nil {
		return errors.New("nobody can read the keytab")
	}
	tell("as nobody, cat of the keytab:")
	quote("cat", out, "denied")
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
	tell("as nobody, gss-server without gssproxyd:")
	quote("gss-server", p.Output(), "Permission denied", "Keytab")
	return nil
}

func with(d *demo) error {
	var err error
	if d.daemon, err = d.Ours(lab.Options{Keytab: d.keytab, Binary: d.binary}); err != nil {
		return err
	}
	tell("gssproxyd runs, pid %d, and answers at %s", d.daemon.PID(), d.daemon.Socket)
	s, err := d.GSSServer(lab.Nobody, d.daemon.PluginEnv(), service)
	if err != nil {
		return err
	}
	env, err := d.Kinit("alice", "alice")
	if err != nil {
		return err
	}
	out, err := d.GSSClient(lab.Nobody, env, s, service, "hello")
	if err != nil {
		return err
	}
	heard, err := s.Wait()
	if err != nil {
		return err
	}
	if !strings.Contains(heard, "alice@"+lab.Name) || !strings.Contains(out, "Signature verified.") {
		return fmt.Errorf("gss-server said:\n%s\ngss-client said:\n%s", heard, out)
	}
	tell("as nobody, the same gss-server through gssproxyd, and alice's gss-client:")
	quote("gss-server", heard, "Accepted connection", "Received message")
	quote("gss-client", out, "GSS_C_MUTUAL_FLAG", "Signature verified.")
	return nil
}

func replay(d *demo) error {
	env, err := d.Kinit("alice", "alice")
	if err != nil {
		return err
	}
	token, err := first(d, env)
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
	tell("a token accepted once, gssproxyd killed (SIGKILL) and started again, the same token:")
	quote("gssproxyd", err.Error(), "")
	return nil
}

func rotate(d *demo) error {
	env, err := d.Kinit("alice", "alice")
	if err != nil {
		return err
	}
	if _, err := first(d, env); err != nil { // the ticket for the old key is in the cache now
		return err
	}
	if err := d.Rotate("host/" + lab.Host); err != nil {
		return err
	}
	next, err := d.Keytab("next.keytab", "host/"+lab.Host)
	if err != nil {
		return err
	}
	if err := os.Rename(next, d.keytab); err != nil {
		return err
	}
	tell("host/%s has new keys, kvno 2; the keytab was replaced and gssproxyd was not told:", lab.Host)
	for _, which := range []string{"old", "new"} {
		token, err := first(d, env)
		if err != nil {
			return err
		}
		if err := accept(d, token); err != nil {
			return fmt.Errorf("the %s ticket: %w", which, err)
		}
		fmt.Printf("           alice with the %s ticket: accepted\n", which)
		if env, err = d.Kinit("alice", "alice"); err != nil {
			return err
		}
	}
	return nil
}

// first makes one first token for the service with the client's tickets.
func first(d *demo, env []string) ([]byte, error) {
	g, err := d.Tool(lab.Nobody, env...)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	_, token, err := g.Init(service, lab.Usual|lab.Mutual, nil)
	return token, err
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
		return errors.New(strings.ReplaceAll(string(s.MajorStatusString)+" "+string(s.MinorStatusString), "\x00", ""))
	}
	return nil
}
