package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/cookiejar"
	neturl "net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gssproxyd/interposer"
	"gssproxyd/interposer/negotiate"
	"gssproxyd/interposer/pggss"
	"gssproxyd/interposer/sshgss"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/mech/spnego"
	"gssproxyd/tests/lab"
)

// ends is a daemon with one socket for those who accept, who may be anybody, one for those who do and
// go on as who came, and one each for those who initiate as alice and as bob.
type ends struct {
	*lab.Daemon
	fronts, initiators, bobs string
}

// accept is a client that accepts, initiate one that initiates.
func (e ends) accept(t *testing.T) *interposer.Client {
	return interpose(t, e.Daemon, interposer.Options{})
}

func (e ends) initiate(t *testing.T) *interposer.Client { return clientAt(t, e.initiators) }

func clientAt(t *testing.T, socket string) *interposer.Client {
	c := interposer.New(socket, interposer.Options{})
	t.Cleanup(func() { c.Close() })
	return c
}

func newEnds(t *testing.T, kind string, services ...string) ends {
	t.Helper()
	r := realm(t)
	keys, err := r.Keytab("services.keytab", services...)
	check(t, err)
	alices, err := r.Keytab("alice.keytab", "alice")
	check(t, err)
	made(t, r.AddPrincipal("bob", "bob"))
	bobs, err := r.Keytab("bob.keytab", "bob")
	check(t, err)
	for _, file := range []string{keys, alices, bobs} {
		unreadable(t, lab.Nobody, file)
	}
	e := ends{fronts: r.Path("fronts.sock"), initiators: r.Path("initiators.sock"), bobs: r.Path("bobs.sock")}
	e.Daemon = daemon(t, kind, lab.Options{Keytab: filepath.Join(r.Dir, "no-keytab"), Config: config(
		svc{"accept", 0, []string{"allow_any_uid = yes", "cred_store = keytab:" + keys, "cred_usage = accept"}},
		svc{"front", 0, []string{"allow_any_uid = yes", "socket = " + e.fronts, "cred_store = keytab:" + keys,
			"cred_store = client_keytab:" + keys, "cred_store = ccache:FILE:" + r.Path("front.cc")}},
		svc{"initiate", 0, []string{"allow_any_uid = yes", "socket = " + e.initiators, "cred_usage = initiate", "filter_flags = -DELEGATE",
			"cred_store = client_keytab:" + alices, "cred_store = ccache:FILE:" + r.Path("alice.cc")}},
		svc{"bob", 0, []string{"allow_any_uid = yes", "socket = " + e.bobs, "cred_usage = initiate",
			"cred_store = client_keytab:" + bobs, "cred_store = ccache:FILE:" + r.Path("bob.cc")}},
	)})
	return e
}

func web() string { return "HTTP/" + lab.Host }

// reach makes a call to a service at the back end, and returns as whom it arrives there.
func reach(ctx context.Context, c, back *interposer.Client, service string, cred *interposer.Cred) (as string, err error) {
	i, token, err := c.InitSecContext(ctx, interposer.InitRequest{Target: interposer.HostbasedName(service, lab.Host), Cred: cred, Flags: lab.Usual})
	if err != nil {
		return "", err
	}
	defer i.Close()
	s, _, err := back.AcceptSecContext(ctx, interposer.AcceptRequest{Token: token})
	if err != nil {
		return "", fmt.Errorf("the back end: %w", err)
	}
	defer s.Close()
	return s.Source().Display, nil
}

// goBuild builds one of the module's commands for programs of every user.
func goBuild(t *testing.T, pkg string) string {
	t.Helper()
	out := realm(t).Path(filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", out, "gssproxyd/"+pkg)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, text)
	}
	return out
}

// TestWebServer: the example, as nobody, who has no keytab, and curl.
func TestWebServer(t *testing.T) {
	r := realm(t)
	lab.NeedPrograms(t, "/usr/bin/curl")
	program := goBuild(t, "interposer/example/webserver")
	overDaemons(t, func(t *testing.T, kind string) {
		e := newEnds(t, kind, web())
		start := func() (*lab.Process, int) {
			port, err := lab.FreePort()
			check(t, err)
			cmd := r.Command(lab.Nobody, []string{"GSSPROXY_SOCKET=" + e.Socket}, program, fmt.Sprintf("127.0.0.1:%d", port), "alice@"+lab.Name)
			p, err := r.Start(cmd, r.Path("webserver.log"))
			check(t, err)
			t.Cleanup(func() { p.Kill() })
			for range 500 {
				if lab.Listening(port) || p.Err() != nil {
					break
				}
			}
			return p, port
		}
		server, port := start()
		curl := func(user string, args ...string) string {
			t.Helper()
			var env []string
			if user != "" {
				var err error
				env, err = r.Kinit(user, user)
				check(t, err)
			}
			out, err := r.Run(lab.Nobody, env, "/usr/bin/curl", append(args, "-sS", "-i", "--max-time", "20",
				"--resolve", fmt.Sprintf("%s:%d:127.0.0.1", lab.Host, port), fmt.Sprintf("http://%s:%d/", lab.Host, port))...)
			check(t, err)
			return out
		}
		negotiating := []string{"--negotiate", "-u", ":"}
		expect := func(what, out string, want ...string) {
			t.Helper()
			if err := said(out, nil, want...); err != nil {
				t.Errorf("%s: %v\nthe server's log:\n%s", what, err, server.Output())
			}
		}
		expect("alice", curl("alice", negotiating...), "200 OK", "hello, alice@"+lab.Name, "Www-Authenticate: Negotiate o")
		expect("a file of alice's", curl("alice", append(negotiating, "-d", strings.Repeat("data", 1000))...), "200 OK", "hello, alice@")
		expect("nobody", curl(""), "401 Unauthorized", "Www-Authenticate: Negotiate\r")
		expect("bob", curl("bob", negotiating...), "403 Forbidden")
		if !strings.Contains(server.Output(), "bob@"+lab.Name) {
			t.Errorf("the log does not tell of bob:\n%s", server.Output())
		}
		check(t, e.Stop())
		expect("without the daemon", curl("alice", negotiating...), "503 Service Unavailable")
		if p, _ := start(); p.Err() != nil {
			t.Errorf("the server does not start before the daemon: %v\n%s", p.Err(), p.Output())
		}
		check(t, e.Start())
		expect("with the daemon again", curl("alice", negotiating...), "200 OK")
	})
}

// TestWebFront: curl and our server, with sessions and pages of its own, which asks an Apache behind
// it as the user.
func TestWebFront(t *testing.T) {
	r := realm(t)
	lab.NeedPrograms(t, "/usr/bin/curl", "/usr/sbin/apache2", "/usr/lib/apache2/modules/mod_auth_gssapi.so")
	www, err := lab.LookupUser("www-data")
	check(t, err)
	overDaemons(t, func(t *testing.T, kind string) {
		e := newEnds(t, kind, web())
		_, port := startApache(t, www, e.PluginEnv())
		back := fmt.Sprintf("http://%s:%d/hello", lab.Host, port)
		daemon := clientAt(t, e.fronts)
		service := closing(t, &negotiate.Transport{Daemon: daemon, Cred: interposer.ServiceCred, Base: transportTo(t, lab.Host), Plain: []string{lab.Host}})
		page := func(text string) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, text, negotiate.ClientFrom(r.Context())) })
		}
		key := make([]byte, 32)
		rand.Read(key)
		auth := &negotiate.Authenticator{
			Daemon: daemon, Delegate: true, Session: &negotiate.CookieSession{Keys: [][]byte{key}},
			Unauthorized: page("a page for"), Forbidden: page("no page for"), Log: slog.New(slog.DiscardHandler),
			Skip: func(r *http.Request) bool { return r.URL.Path == "/skipped" || negotiate.Preflight(r) },
			Allow: func(r *http.Request, p *interposer.Peer) error {
				if p.Name.Display == "bob@"+lab.Name && r.URL.Path != "/bobs" {
					return errors.New("bob has a page of his own")
				}
				return nil
			},
		}
		optional := *auth
		optional.Optional = true
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n, err := io.Copy(io.Discard, r.Body)
			check(t, err)
			p := negotiate.ClientFrom(r.Context())
			fmt.Fprintf(w, "%s, %d bytes of %v, ", r.Proto, n, p)
			rt, err := service.As(p)
			if err != nil {
				fmt.Fprintln(w, "who has delegated nothing:", errors.Is(err, negotiate.ErrNotDelegated))
				return
			}
			defer rt.CloseIdleConnections()
			resp, _ := fetch(t, rt, back)
			fmt.Fprintln(w, "who arrives as", resp.Header.Get("X-User"))
		})
		mux := http.NewServeMux()
		mux.Handle("/", auth.Wrap(h))
		mux.Handle("/optional", optional.Wrap(h))
		url := serveTLS(t, mux)

		dir, err := r.MkdirFor(lab.Nobody, "curl")
		check(t, err)
		file := filepath.Join(dir, "file")
		check(t, os.WriteFile(file, make([]byte, 1<<20), 0o644))
		for version, proto := range map[string]string{"--http1.1": "HTTP/1.1", "--http2": "HTTP/2.0"} {
			curl := func(user, path string, args ...string) string {
				t.Helper()
				args = append(args, version, "-k", "-sS", "-i", "--max-time", "20", "--resolve", strings.TrimSuffix(strings.TrimPrefix(url, "https://"), "/")+":127.0.0.1", url+path)
				var env []string
				if user != "" {
					var err error
					env, err = r.Kinit(user, user, "-f")
					check(t, err)
					args = append(args, "--negotiate", "-u", ":")
				}
				out, err := r.Run(lab.Nobody, env, "/usr/bin/curl", args...)
				check(t, err)
				return strings.ToLower(out)
			}
			expect := func(what, out string, want ...string) {
				t.Helper()
				for i := range want {
					want[i] = strings.ToLower(want[i])
				}
				if err := said(out, nil, want...); err != nil {
					t.Errorf("%s, %s: %v", proto, what, err)
				}
			}
			jar := filepath.Join(dir, "jar"+version)
			alice, bob := "alice@"+lab.Name, "bob@"+lab.Name
			delegating := []string{"--delegation", "always"}
			expect("nobody", curl("", ""), " 401", "www-authenticate: negotiate\r", "a page for <nil>")
			expect("bob", curl("bob", ""), " 403", "no page for "+bob)
			expect("bob's page", curl("bob", "bobs", delegating...), " 200", "of "+bob+", who arrives as "+bob)
			expect("alice", curl("alice", "", append(delegating, "-c", jar)...), " 200", proto+", 0 bytes of "+alice+", who arrives as "+alice,
				"set-cookie: __host-negotiate=", "; httponly; secure; samesite=lax")
			expect("alice, who does not delegate", curl("alice", ""), " 200", "of "+alice+", who has delegated nothing: true")
			expect("a file of alice's", curl("alice", "", append(delegating, "--data-binary", "@"+file, "-H", "Expect: 100-continue")...),
				" 200", "1048576 bytes of "+alice+", who arrives as "+alice)
			expect("nobody, who may be", curl("", "optional"), " 200", "of <nil>")
			expect("alice, who may be nobody", curl("alice", "optional", delegating...), " 200", "of "+alice+", who arrives as "+alice)
			expect("who is not looked at", curl("alice", "skipped"), " 200", "of <nil>")
			expect("a question of a browser's", curl("", "", "-X", "OPTIONS", "-H", "Origin: https://elsewhere.test", "-H", "Access-Control-Request-Method: PUT"), " 200", "of <nil>")
			check(t, e.Stop()) // who has a cookie needs none
			expect("alice's session", curl("", "", "-b", jar), " 200", proto+", 0 bytes of "+alice+", who has delegated nothing: true")
			check(t, e.Start())
		}
	})
}

// TestWebClient: our client and Apache.
func TestWebClient(t *testing.T) {
	lab.NeedPrograms(t, "/usr/sbin/apache2", "/usr/lib/apache2/modules/mod_auth_gssapi.so")
	www, err := lab.LookupUser("www-data")
	check(t, err)
	overDaemons(t, func(t *testing.T, kind string) {
		e := newEnds(t, kind, web())
		_, port := startApache(t, www, e.PluginEnv())
		base := transportTo(t, lab.Host)
		transport := func(base *http.Transport) *negotiate.Transport {
			return closing(t, &negotiate.Transport{Daemon: e.initiate(t), Cred: interposer.ServiceCred, Base: base, Plain: []string{"." + lab.Domain}})
		}
		url := fmt.Sprintf("http://%s:%d/hello", lab.Host, port)
		for _, preemptive := range []bool{false, true} {
			rt := transport(base)
			rt.Preemptive = preemptive
			resp, body := fetch(t, rt, url)
			server := negotiate.ServerFrom(resp)
			if resp.StatusCode != http.StatusOK || resp.Header.Get("X-User") != "alice@"+lab.Name || body != "hello, world\n" {
				t.Errorf("preemptive %v: %s as %q: %s", preemptive, resp.Status, resp.Header.Get("X-User"), body)
			}
			if server == nil || server.Name.Display != web()+"@"+lab.Name {
				t.Errorf("the server is %v", server)
			}
		}
		rt := transport(transportTo(t, "elsewhere."+lab.Domain))
		_, err := (&http.Client{Transport: rt}).Get(strings.Replace(url, lab.Host, "elsewhere."+lab.Domain, 1))
		var refusal *mech.Error
		if !errors.As(err, &refusal) || kind == "ours" && refusal.Reason != reason.ServerUnknown {
			t.Errorf("a server that the KDC does not know: %v", err)
		}
		check(t, e.Stop())
		if _, err := (&http.Client{Transport: transport(base)}).Get(url); err == nil {
			t.Error("a token without the daemon")
		}
		check(t, e.Start())
	})
}

// closing has a transport's connections closed with the test.
func closing(t *testing.T, rt *negotiate.Transport) *negotiate.Transport {
	t.Cleanup(rt.CloseIdleConnections)
	return rt
}

// TestWebConnectionBound: an Apache that takes whoever has authenticated on a connection for the
// author of all further requests on it. Nobody shares a connection with anybody else.
func TestWebConnectionBound(t *testing.T) {
	lab.NeedPrograms(t, "/usr/sbin/apache2", "/usr/lib/apache2/modules/mod_auth_gssapi.so")
	www, err := lab.LookupUser("www-data")
	check(t, err)
	overDaemons(t, func(t *testing.T, kind string) {
		e := newEnds(t, kind, web())
		_, port := startApacheIn(t, realm(t), www, e.PluginEnv(), "GssapiConnectionBound On")
		base := transportTo(t, lab.Host)
		url := fmt.Sprintf("http://%s:%d/hello", lab.Host, port)
		as := func(socket string) *negotiate.Transport {
			return closing(t, &negotiate.Transport{Daemon: clientAt(t, socket), Cred: interposer.ServiceCred, Base: base, Plain: []string{lab.Host}})
		}
		alice, bob := as(e.initiators), as(e.bobs)
		alice.Target = func(u *neturl.URL) (interposer.Name, bool) {
			return interposer.HostbasedName("HTTP", lab.Host), u.RawQuery == ""
		}
		for range 3 {
			for name, rt := range map[string]*negotiate.Transport{"alice": alice, "bob": bob} {
				if resp, _ := fetch(t, rt, url); resp.Header.Get("X-User") != name+"@"+lab.Name {
					t.Errorf("%s is %q: %s", name, resp.Header.Get("X-User"), resp.Status)
				}
			}
			if resp, _ := fetch(t, base, url); resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("nobody is %q: %s", resp.Header.Get("X-User"), resp.Status)
			}
			if resp, _ := fetch(t, alice, url+"?public"); resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("what alice asks for as nobody, is asked by %q: %s", resp.Header.Get("X-User"), resp.Status)
			}
		}
	})
}

// TestWebSessions: an Apache that gives a cookie to whoever has authenticated.
func TestWebSessions(t *testing.T) {
	modules := "/usr/lib/apache2/modules/"
	lab.NeedPrograms(t, "/usr/sbin/apache2", modules+"mod_auth_gssapi.so", modules+"mod_session.so", modules+"mod_session_cookie.so")
	www, err := lab.LookupUser("www-data")
	check(t, err)
	overDaemons(t, func(t *testing.T, kind string) {
		e := newEnds(t, kind, web())
		_, port := startApacheIn(t, realm(t), www, e.PluginEnv(), "Session On", "SessionCookieName apache path=/;httponly", "GssapiUseSessions On")
		url := fmt.Sprintf("http://%s:%d/hello", lab.Host, port)
		jar, err := cookiejar.New(nil)
		check(t, err)
		for _, what := range []string{"with a token", "with a cookie"} {
			rt := closing(t, &negotiate.Transport{Daemon: e.initiate(t), Cred: interposer.ServiceCred, Base: transportTo(t, lab.Host), Plain: []string{lab.Host}})
			resp, err := (&http.Client{Transport: rt, Jar: jar, Timeout: lab.Patience}).Get(url)
			check(t, err)
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK || resp.Header.Get("X-User") != "alice@"+lab.Name {
				t.Errorf("%s: %s as %q", what, resp.Status, resp.Header.Get("X-User"))
			}
			if what == "with a token" {
				check(t, e.Stop()) // who has a cookie needs none
			}
		}
		check(t, e.Start())
	})
}

// TestGoPython: our ends and those of python3-gssapi.
func TestGoPython(t *testing.T) {
	r := realm(t)
	const python = "/usr/bin/python3"
	if out, err := exec.Command(python, "-c", "import gssapi").CombinedOutput(); err != nil {
		lab.Lacking(t, "python3-gssapi", fmt.Errorf("%w: %s", err, out))
	}
	keys, err := r.Keytab("svc.keytab", "svc/"+lab.Host)
	check(t, err)
	env, err := r.Kinit("alice", "alice", "-f")
	check(t, err)
	// The program reads lines of base64 and answers each with one: tokens until the context is
	// complete, and then a message to unwrap, which it answers with the same in capitals.
	start := func(u lab.User, env []string, begin string) func(token []byte) []byte {
		cmd := r.Command(u, env, python, "-u", "-c", begin+`
import base64, sys
def answer(b): print(base64.b64encode(b or b"").decode())
for line in sys.stdin:
    token = base64.b64decode(line)
    if not ctx.complete:
        answer(ctx.step(token or None))
    else:
        answer(ctx.wrap(ctx.unwrap(token).message.upper(), True).message)
`)
		in, err := cmd.StdinPipe()
		check(t, err)
		out, err := cmd.StdoutPipe()
		check(t, err)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		check(t, cmd.Start())
		t.Cleanup(func() { in.Close(); cmd.Wait() })
		lines := bufio.NewReader(out)
		return func(token []byte) []byte {
			t.Helper()
			fmt.Fprintln(in, base64.StdEncoding.EncodeToString(token))
			line, err := lines.ReadString('\n')
			if err != nil {
				in.Close()
				cmd.Wait()
				t.Fatalf("%v\n%s", err, &stderr)
			}
			b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(line))
			check(t, err)
			return b
		}
	}
	converse := func(s *interposer.SecContext, python func([]byte) []byte) {
		t.Helper()
		token, err := s.Wrap(nil, []byte("good morning"), true)
		check(t, err)
		msg, sealed, err := s.Unwrap(nil, python(token))
		if err != nil || !sealed || string(msg) != "GOOD MORNING" {
			t.Errorf("%q, encrypted %v, %v", msg, sealed, err)
		}
	}
	overDaemons(t, func(t *testing.T, kind string) {
		e := newEnds(t, kind, "svc/"+lab.Host)
		ctx := limited(t)
		acceptor := start(lab.Root, []string{"KRB5_KTNAME=" + keys}, "import gssapi\nctx = gssapi.SecurityContext(usage='accept')")
		s, token, err := e.initiate(t).InitSecContext(ctx, interposer.InitRequest{
			Target: interposer.HostbasedName("svc", lab.Host), Cred: interposer.ServiceCred, Flags: lab.Usual | lab.Mutual,
		})
		check(t, err)
		defer s.Close()
		if _, err := s.Step(ctx, acceptor(token)); err != nil || !s.Established() {
			t.Fatalf("established %v, %v", s.Established(), err)
		}
		converse(s, acceptor)

		initiator := start(lab.Nobody, env, "import gssapi\nF = gssapi.RequirementFlag\n"+
			"ctx = gssapi.SecurityContext(usage='initiate', name=gssapi.Name('"+service+"', gssapi.NameType.hostbased_service), "+
			"flags=F.mutual_authentication|F.delegate_to_peer|F.confidentiality|F.integrity|F.replay_detection|F.out_of_sequence_detection)")
		a, reply, err := e.accept(t).AcceptSecContext(ctx, interposer.AcceptRequest{Token: initiator(nil), Delegate: true})
		check(t, err)
		defer a.Close()
		if rest := initiator(reply); len(rest) != 0 || !a.Established() {
			t.Errorf("established %v, and a token of %d bytes more", a.Established(), len(rest))
		}
		p, err := a.Peer()
		check(t, err)
		if p.Name.Display != "alice@"+lab.Name || p.Delegated == nil || !p.Flags.Has(mech.FlagDeleg|mech.FlagMutual) {
			t.Errorf("the peer is %v with %v, delegated: %v", p, p.Flags, p.Delegated)
		}
		converse(a, initiator)
	})
}

// transportTo is on connections of its own, to the loopback interface when host is meant.
func transportTo(t *testing.T, host string) *http.Transport {
	dialer := net.Dialer{Timeout: lab.Patience}
	rt := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	rt.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		return dialer.DialContext(ctx, network, strings.Replace(addr, host, "127.0.0.1", 1))
	}
	t.Cleanup(rt.CloseIdleConnections)
	return rt
}

func fetch(t *testing.T, rt http.RoundTripper, url string) (*http.Response, string) {
	t.Helper()
	resp, err := (&http.Client{Transport: rt, Timeout: lab.Patience}).Get(url)
	check(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	check(t, err)
	return resp, string(body)
}

// TestWebBindings: both of our ends over TLS, and somebody in between.
func TestWebBindings(t *testing.T) {
	overDaemons(t, func(t *testing.T, kind string) {
		e := newEnds(t, kind, web())
		auth := &negotiate.Authenticator{
			Daemon: e.accept(t), Require: mech.FlagChannelBound | mech.FlagMutual, Log: slog.New(slog.DiscardHandler),
		}
		h := auth.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p := negotiate.ClientFrom(r.Context())
			fmt.Fprint(w, p.Name)
			if !hasPAC(p) {
				t.Errorf("no PAC that was verified among the attributes of %s", p.Name)
			}
		}))
		transport := func() *negotiate.Transport {
			return closing(t, &negotiate.Transport{Daemon: e.initiate(t), Cred: interposer.ServiceCred, Base: transportTo(t, lab.Host)})
		}
		url := serveTLS(t, h)
		for _, preemptive := range []bool{false, true} {
			rt := transport()
			rt.Preemptive = preemptive
			if resp, body := fetch(t, rt, url); body != "alice@"+lab.Name {
				t.Errorf("preemptive %v: %s: %s", preemptive, resp.Status, body)
			}
		}
		rt := transport()
		rt.IgnoreBindings = true
		if resp, _ := fetch(t, rt, url); resp.StatusCode != http.StatusForbidden {
			t.Errorf("without bindings: %s", resp.Status)
		}
		forward := transportTo(t, lab.Host)
		between := serveTLS(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			out, err := http.NewRequest("GET", url, nil)
			check(t, err)
			out.Header = r.Header
			resp, err := forward.RoundTrip(out)
			check(t, err)
			defer resp.Body.Close()
			w.Header()["Www-Authenticate"] = resp.Header["Www-Authenticate"]
			w.WriteHeader(resp.StatusCode)
		}))
		auth.Require = 0
		resp, err := (&http.Client{Transport: transport()}).Get(between)
		if err == nil {
			resp.Body.Close()
		}
		if err == nil && resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("somebody in between gets %s", resp.Status)
		}
	})
}

// serveTLS serves a handler on a server that was given to Bind, and returns its URL.
func serveTLS(t *testing.T, h http.Handler) string {
	t.Helper()
	s := &http.Server{Handler: h, TLSConfig: &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}}}
	negotiate.Bind(s)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	go s.ServeTLS(l, "", "")
	t.Cleanup(func() { s.Close() })
	return fmt.Sprintf("https://%s:%d/", lab.Host, l.Addr().(*net.TCPAddr).Port)
}

func hasPAC(p *interposer.Peer) bool {
	for _, a := range p.Attributes {
		if a.Name == interposer.PAC && len(a.Value) > 0 && a.Authenticated {
			return true
		}
	}
	return false
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	c := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{lab.Host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	check(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestGoNegotiation: our ends of SPNEGO and MIT's.
func TestGoNegotiation(t *testing.T) {
	r := realm(t)
	overDaemons(t, func(t *testing.T, kind string) {
		e := newEnds(t, kind, "svc/"+lab.Host)
		negotiator := func(u lab.User, env ...string) *lab.SPNEGOTool {
			g, err := r.SPNEGOTool(u, env...)
			check(t, err)
			t.Cleanup(func() { g.Close() })
			return g
		}
		env, err := r.Kinit("alice", "alice")
		check(t, err)
		client := negotiator(lab.Nobody, env...)
		keys, err := r.Keytab("svc.keytab", "svc/"+lab.Host)
		check(t, err)
		server := negotiator(lab.Root, "KRB5_KTNAME="+keys)

		for _, tt := range []struct {
			name  string
			offer []mech.OID
			flags uint32
			steps int
		}{
			{"mutual", nil, lab.Usual | lab.Mutual, 1},
			{"non-mutual", nil, lab.Usual, 1},
			{"after NTLM", []mech.OID{spnego.NTLM, mech.KRB5}, lab.Usual | lab.Mutual, 3},
		} {
			t.Run("accept "+tt.name, func(t *testing.T) {
				c := e.accept(t)
				n, err := client.NegInit(tt.offer, service, tt.flags)
				check(t, err)
				var s *interposer.SecContext
				for steps := 1; ; steps++ {
					var reply []byte
					if s == nil {
						s, reply, err = c.AcceptSecContext(limited(t), interposer.AcceptRequest{Token: n.Token})
					} else {
						reply, err = s.Step(limited(t), n.Token)
					}
					check(t, err)
					if len(reply) > 0 {
						n, err = client.NegStep(n.ID, reply)
						check(t, err)
					}
					if s.Established() {
						if steps != tt.steps || !n.Complete {
							t.Errorf("%d steps, want %d; MIT's end is complete: %v", steps, tt.steps, n.Complete)
						}
						break
					}
				}
				defer s.Close()
				if s.Source().Display != "alice@"+lab.Name {
					t.Errorf("accepted %v", s)
				}
				exchangeMessages(t, s, lab.End{Tool: client.Tool, ID: n.ID})
			})
		}
		for _, flags := range []interposer.Flags{lab.Usual | lab.Mutual, lab.Usual} {
			t.Run("initiate "+flags.String(), func(t *testing.T) {
				c := e.initiate(t)
				s, token, err := c.InitSecContext(limited(t), interposer.InitRequest{
					Target: interposer.HostbasedName("svc", lab.Host), Cred: interposer.ServiceCred, Mech: mech.SPNEGO, Flags: flags,
				})
				check(t, err)
				n, err := server.NegAccept(-1, token)
				check(t, err)
				if !n.Complete || n.Client != "alice@"+lab.Name {
					t.Errorf("MIT's end: %+v", n)
				}
				token, err = s.Step(limited(t), n.Token)
				check(t, err)
				defer s.Close()
				if !s.Established() || len(token) != 0 {
					t.Errorf("established %v, a token of %d bytes", s.Established(), len(token))
				}
				exchangeMessages(t, s, lab.End{Tool: server.Tool, ID: n.ID})
			})
		}
	})
}

// TestSSHServer: a server of package ssh without keys, and OpenSSH's client. With what a user has
// delegated on a connection, the server makes a call to a back end.
func TestSSHServer(t *testing.T) {
	r := realm(t)
	lab.NeedPrograms(t, "/usr/bin/ssh")
	made(t, r.RandKey("host/"+lab.Host))
	made(t, r.AddPrincipal("carol", "carol"))
	_, key, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	signer, err := ssh.NewSignerFromKey(key)
	check(t, err)
	overDaemons(t, func(t *testing.T, kind string) {
		e := newEnds(t, kind, "host/"+lab.Host)
		front, back := clientAt(t, e.fronts), e.accept(t)
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		check(t, err)
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go serveSSH(t.Context(), conn, front, back, signer)
			}
		}()
		s := &lab.SSHD{Port: l.Addr().(*net.TCPAddr).Port}
		login := func(user string, options ...string) (string, error) {
			env, err := r.Kinit(user, user, "-f")
			check(t, err)
			return r.SSH(lab.Nobody, env, s, "who am I", options...)
		}
		for range 2 {
			out, err := login("alice")
			check(t, said(out, err, `"who am I" of root, who is alice@`+lab.Name+", delegated: <nil>"))
		}
		// At once, and each with what is its own.
		var logins sync.WaitGroup
		for _, user := range []string{"alice", "bob"} {
			for _, delegate := range []string{"yes", "no"} {
				logins.Go(func() {
					out, err := login(user, "-o", "GSSAPIDelegateCredentials="+delegate)
					want := "delegated: <nil>"
					if delegate == "yes" {
						want = "delegated: credential of " + user + "@" + lab.Name + ", arrives as " + user + "@" + lab.Name
					}
					if err := said(out, err, "who is "+user+"@"+lab.Name, want); err != nil {
						t.Errorf("%s, delegating: %s: %v", user, delegate, err)
					}
				})
			}
		}
		logins.Wait()
		if out, err := login("carol"); err == nil {
			t.Errorf("carol is let in:\n%s", out)
		}
		check(t, e.Stop())
		if out, err := login("alice"); err == nil {
			t.Errorf("alice is let in without the daemon:\n%s", out)
		}
		check(t, e.Start())
		out, err := login("alice")
		check(t, said(out, err, "who is alice@"))
	})
}

// serveSSH lets alice and bob in as root, and answers one command.
func serveSSH(ctx context.Context, conn net.Conn, daemon, back *interposer.Client, key ssh.Signer) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(lab.Patience))
	base := new(ssh.ServerConfig)
	base.AddHostKey(key)
	var p *interposer.Peer
	config := (&sshgss.Server{Daemon: daemon, Delegate: true, Allow: func(c ssh.ConnMetadata, user *interposer.Peer) (*ssh.Permissions, error) {
		if c.User() != "root" || user.Name.Display != "alice@"+lab.Name && user.Name.Display != "bob@"+lab.Name {
			return nil, fmt.Errorf("%s is not %s", user, c.User())
		}
		p = user
		return nil, nil
	}}).Config(ctx, base)
	sc, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for ch := range channels {
		channel, requests, err := ch.Accept()
		if err != nil {
			return
		}
		for req := range requests {
			if req.Type != "exec" {
				req.Reply(false, nil)
				continue
			}
			req.Reply(true, nil)
			fmt.Fprintf(channel, "%q of %s, who is %s, delegated: %v", req.Payload[4:], sc.User(), p.Name, p.Delegated)
			if p.Delegated != nil {
				as, err := reach(ctx, daemon, back, "host", p.Delegated)
				fmt.Fprintf(channel, ", arrives as %s, %v", as, err)
			}
			channel.SendRequest("exit-status", false, make([]byte, 4))
			channel.Close()
		}
	}
}

// TestSSHClient: a client of package ssh without tickets, and OpenSSH's server.
func TestSSHClient(t *testing.T) {
	r := realm(t)
	lab.NeedPrograms(t, "/usr/sbin/sshd")
	made(t, r.RandKey("host/"+lab.Host))
	keys, err := r.Keytab("host.keytab", "host/"+lab.Host)
	check(t, err)
	server, err := r.SSHD("KRB5_KTNAME=" + keys)
	check(t, err)
	overDaemons(t, func(t *testing.T, kind string) {
		e := newEnds(t, kind, "svc/"+lab.Host)
		c := e.initiate(t)
		run := func(host, command string, delegate bool) (string, error) {
			g := sshgss.NewClient(t.Context(), c, interposer.ServiceCred)
			if delegate {
				g.Flags = mech.FlagDeleg
			}
			conn, err := ssh.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", server.Port), &ssh.ClientConfig{
				User: "root", Auth: []ssh.AuthMethod{ssh.GSSAPIWithMICAuthMethod(g, host)},
				HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: lab.Patience,
			})
			if err != nil {
				return "", err
			}
			defer conn.Close()
			session, err := conn.NewSession()
			if err != nil {
				return "", err
			}
			out, err := session.CombinedOutput(command)
			return string(out), err
		}
		const command = `echo hello; [ -z "$KRB5CCNAME" ] || klist -f "$KRB5CCNAME"`
		out, err := run(lab.Host, command, false)
		check(t, said(out, err, "hello"))
		if strings.Contains(out, "Ticket cache") {
			t.Errorf("a delegated ticket nobody asked for:\n%s", out)
		}
		out, err = run(lab.Host, command, true)
		check(t, said(out, err, "hello", "Default principal: alice@"+lab.Name, "krbtgt/"+lab.Name+"@"+lab.Name))
		if _, err := run("elsewhere."+lab.Domain, command, false); err == nil {
			t.Error("logged in to a host that the KDC does not know")
		}
		check(t, e.Stop())
		if _, err := run(lab.Host, command, false); err == nil {
			t.Error("logged in without the daemon")
		}
		check(t, e.Start())
	})
}

// TestPostgres: a PostgreSQL server that demands Kerberos, and the messages that a driver exchanges
// with it.
func TestPostgres(t *testing.T) {
	r := realm(t)
	made(t, r.RandKey("postgres/"+lab.Host))
	keys, err := r.Keytab("postgres.keytab", "postgres/"+lab.Host)
	check(t, err)
	port, server := startPostgres(t, keys)
	overDaemons(t, func(t *testing.T, kind string) {
		c := newEnds(t, kind, "svc/"+lab.Host).initiate(t)
		for name, begin := range map[string]func(*pggss.GSS) ([]byte, error){
			"service": func(g *pggss.GSS) ([]byte, error) { return g.GetInitToken(lab.Host, "postgres") },
			"SPN": func(g *pggss.GSS) ([]byte, error) {
				return g.GetInitTokenFromSPN("postgres/" + lab.Host + "@" + lab.Name)
			},
		} {
			if user, err := askPostgres(port, "alice", pggss.New(t.Context(), c, interposer.ServiceCred), begin); err != nil || user != "alice" {
				t.Errorf("%s: %q, %v\n%s", name, user, err, server.Output())
			}
		}
		if user, err := askPostgres(port, "postgres", pggss.New(t.Context(), c, interposer.ServiceCred), func(g *pggss.GSS) ([]byte, error) { return g.GetInitToken(lab.Host, "postgres") }); err == nil {
			t.Errorf("alice is %s", user)
		}
	})
}

// TestPostgresShowsTheReason: a PostgreSQL server accepts through the daemon, and cuts what the
// daemon says when it refuses. The reason is in the part that is left.
func TestPostgresShowsTheReason(t *testing.T) {
	needOurs(t)
	r := realm(t)
	made(t, r.RandKey("postgres/"+lab.Host))
	e := newEnds(t, "ours", "svc/"+lab.Host) // and no key of PostgreSQL's
	port, server := startPostgres(t, filepath.Join(r.Dir, "no-keytab"), e.PluginEnv()...)
	_, err := askPostgres(port, "alice", pggss.New(t.Context(), e.initiate(t), interposer.ServiceCred), func(g *pggss.GSS) ([]byte, error) { return g.GetInitToken(lab.Host, "postgres") })
	if err == nil {
		t.Fatal("accepted without a key")
	}
	check(t, server.WaitOutput("GSSAPI authentication failed", lab.Patience))
	detail := regexp.MustCompile("DETAIL: .*Unspecified GSS failure.*").FindString(server.Output())
	if !strings.Contains(detail, ": [no-key] ") || strings.Contains(detail, "keytab FILE:") {
		t.Errorf("the server's log has %q", detail)
	}
}

// startPostgres starts a PostgreSQL server that demands Kerberos, with a keytab and variables.
func startPostgres(t *testing.T, keys string, env ...string) (port int, server *lab.Process) {
	t.Helper()
	r := realm(t)
	versions, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	check(t, err)
	postgres := append(versions, "/usr/lib/postgresql/bin")[0] + "/"
	lab.NeedPrograms(t, postgres+"initdb")
	pg, err := lab.LookupUser("postgres")
	check(t, err)
	if _, err := os.Stat(keys); err == nil {
		check(t, os.Chown(keys, int(pg.UID), int(pg.GID)))
	}
	dir, err := r.MkdirFor(pg, "postgres")
	check(t, err)
	data := filepath.Join(dir, "data")
	_, err = r.Run(pg, nil, postgres+"initdb", "-D", data, "-U", "alice", "--no-sync", "-A", "trust", "--no-locale")
	check(t, err)
	check(t, os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte("host all all 127.0.0.1/32 gss include_realm=0 krb_realm="+lab.Name+"\n"), 0o644))
	port, err = lab.FreePort()
	check(t, err)
	server, err = r.Start(r.Command(pg, env, postgres+"postgres", "-D", data, "-p", fmt.Sprint(port), "-c", "listen_addresses=127.0.0.1",
		"-c", "unix_socket_directories=", "-c", "krb_server_keyfile="+keys, "-c", "fsync=off"), filepath.Join(dir, "log"))
	check(t, err)
	t.Cleanup(func() { server.Stop() })
	check(t, server.WaitOutput("ready to accept connections", lab.Patience))
	return port, server
}

// askPostgres logs in and asks who it is.
func askPostgres(port int, user string, g *pggss.GSS, begin func(*pggss.GSS) ([]byte, error)) (string, error) {
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(lab.Patience))
	send := func(kind string, body []byte) error {
		b := binary.BigEndian.AppendUint32([]byte(kind), uint32(len(body)+4))
		_, err := conn.Write(append(b, body...))
		return err
	}
	if err := send("", append([]byte{0, 3, 0, 0}, "user\x00"+user+"\x00database\x00postgres\x00\x00"...)); err != nil {
		return "", err
	}
	answer := ""
	for {
		var head [5]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return "", err
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(conn, body); err != nil {
			return "", err
		}
		switch head[0] {
		case 'E':
			return "", fmt.Errorf("the server says %q", bytes.ReplaceAll(body, []byte{0}, []byte{' '}))
		case 'D':
			answer = string(body[6:])
		case 'Z':
			if answer != "" {
				return answer, nil
			}
			if err := send("Q", []byte("select current_user\x00")); err != nil {
				return "", err
			}
		case 'R':
			var token []byte
			var done bool
			switch code := binary.BigEndian.Uint32(body); code {
			case 0: // AuthenticationOk
				continue
			case 7: // AuthenticationGSS
				token, err = begin(g)
			case 8: // AuthenticationGSSContinue
				done, token, err = g.Continue(body[4:])
			default:
				err = fmt.Errorf("the server wants authentication %d", code)
			}
			if err != nil {
				return "", err
			}
			if done {
				continue
			}
			if err := send("p", token); err != nil {
				return "", err
			}
		}
	}
}

// TestCommandLine: gssproxyd init and gssproxyd accept, each as nobody, of both daemons.
func TestCommandLine(t *testing.T) {
	r := realm(t)
	program := goBuild(t, "gssproxyd")
	env, err := r.Kinit("alice", "alice")
	check(t, err)
	mit := tool(t, lab.Nobody, env...)
	overDaemons(t, func(t *testing.T, kind string) {
		e := newEnds(t, kind, "svc/"+lab.Host)
		run := func(input string, args ...string) (string, string, error) {
			cmd := r.Command(lab.Nobody, nil, program, args...)
			var stdout, stderr strings.Builder
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
			err := cmd.Run()
			return stdout.String(), stderr.String(), err
		}
		accept := func(token []byte) (string, string, error) {
			return run(base64.StdEncoding.EncodeToString(token)+"\n", "accept", "-s", e.Socket)
		}
		value := func(out, key string) string {
			for line := range strings.Lines(out) {
				if v, ok := strings.CutPrefix(line, key+": "); ok {
					return strings.TrimSuffix(v, "\n")
				}
			}
			return ""
		}

		// MIT's initiator.
		id, token, err := mit.Init(service, lab.Usual|lab.Mutual, nil)
		check(t, err)
		out, stderr, err := accept(token)
		if err != nil {
			t.Fatal(err, stderr)
		}
		check(t, said(out, nil, "principal: alice@"+lab.Name+"\n", "target: svc/"+lab.Host+"@"+lab.Name+"\n", "flags: mutual, ", "lifetime: 3"))
		answer, err := base64.StdEncoding.DecodeString(value(out, "token"))
		check(t, err)
		if complete, _, err := mit.Step(id, answer); err != nil || !complete {
			t.Errorf("MIT's end: complete %v, %v", complete, err)
		}
		out, stderr, err = accept(token)
		if err == nil || value(out, "principal") != "" || !strings.Contains(stderr, "replay") {
			t.Errorf("a replay: %v, %q, %q", err, out, stderr)
		}

		// Both of ours, in every form.
		for _, args := range [][]string{nil, {"--spnego"}} {
			out, stderr, err := run("", append([]string{"init", "-s", e.initiators, service}, args...)...)
			if err != nil || strings.Count(out, "\n") != 1 {
				t.Fatal(err, stderr)
			}
			out, stderr, err = run(out, "accept", "-s", e.Socket)
			if err != nil || value(out, "principal") != "alice@"+lab.Name || (value(out, "token") != "") != (args != nil) {
				t.Errorf("%v: %v, %s%s", args, err, out, stderr)
			}
			check(t, talk(r, program, e, append([]string{"--mutual", "svc/" + lab.Host + "@" + lab.Name}, args...)))
		}
		_, stderr, err = run("", "init", "-s", e.initiators, "svc@elsewhere."+lab.Domain)
		if err == nil || kind == "ours" && !strings.Contains(stderr, "["+string(reason.ServerUnknown)+"]") {
			t.Errorf("an unknown service: %v, %s", err, stderr)
		}
		if out, _, err := run("", "init", "-s", e.Socket, service); err == nil || out != "" {
			t.Error("a token from a service that accepts only")
		}
	})
}

// talk connects init with accept.
func talk(r *lab.Realm, program string, e ends, args []string) error {
	init := r.Command(lab.Nobody, nil, program, append([]string{"init", "-s", e.initiators}, args...)...)
	accept := r.Command(lab.Nobody, nil, program, "accept", "-s", e.Socket)
	var stderr bytes.Buffer
	init.Stderr = &stderr
	tokens, err := init.StdoutPipe()
	if err != nil {
		return err
	}
	answers, err := init.StdinPipe()
	if err != nil {
		return err
	}
	if err := init.Start(); err != nil {
		return err
	}
	accept.Stdin = tokens
	out, err := accept.Output()
	if err != nil {
		return errors.Join(err, init.Process.Kill(), init.Wait())
	}
	token, _, _ := strings.Cut(strings.TrimPrefix(string(out), "token: "), "\n")
	io.WriteString(answers, token+"\n")
	answers.Close()
	if err := init.Wait(); err != nil {
		return fmt.Errorf("init %v: %w: %s\naccept said:\n%s", args, err, &stderr, out)
	}
	return nil
}
