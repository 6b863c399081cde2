package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gssproxyd/tests/lab"
)

// onlyEnctype is the environment of a client, alice, that knows one enctype.
func onlyEnctype(t *testing.T, n int) []string {
	t.Helper()
	conf, err := realm(t).Krb5Conf(fmt.Sprintf("krb5-%d.conf", n), "permitted_enctypes = "+lab.EnctypeName(n))
	check(t, err)
	env, err := realm(t).KinitEnv([]string{"KRB5_CONFIG=" + conf}, "alice", "alice")
	check(t, err)
	return env
}

// TestUnmodifiedPrograms: gss-client against gss-server, which runs as nobody and has no key.
func TestUnmodifiedPrograms(t *testing.T) {
	overDaemons(t, func(t *testing.T, kind string) {
		d := daemon(t, kind, lab.Options{})
		for _, n := range enctypes {
			env := onlyEnctype(t, n)
			for _, c := range []struct {
				name string
				args []string
				want []string // in the client's output
				not  []string
			}{
				{"mutual", nil, []string{"GSS_C_MUTUAL_FLAG"}, nil},
				{"non-mutual", []string{"-nomutual"}, nil, []string{"GSS_C_MUTUAL_FLAG"}},
				{"unwrapped", []string{"-nw"}, nil, nil},
				{"integrity only", []string{"-nx"}, nil, nil},
				{"sequence", []string{"-seq"}, []string{"GSS_C_SEQUENCE_FLAG"}, nil},
				{"spnego", []string{"-spnego"}, nil, nil},
			} {
				t.Run(fmt.Sprintf("%d/%s", n, c.name), func(t *testing.T) {
					s, err := realm(t).GSSServer(lab.Nobody, d.PluginEnv(), serviceOf(n))
					check(t, err)
					out, err := realm(t).GSSClient(lab.Nobody, env, s, serviceOf(n), "greetings", append(c.args, "-mcount", "4")...)
					check(t, err)
					if got := strings.Count(out, "Signature verified."); got != 4 {
						t.Errorf("the client verified %d MICs, want 4:\n%s", got, out)
					}
					for _, w := range c.want {
						if !strings.Contains(out, w) {
							t.Errorf("no %s:\n%s", w, out)
						}
					}
					for _, w := range c.not {
						if strings.Contains(out, w) {
							t.Errorf("%s:\n%s", w, out)
						}
					}
					heard, err := s.Wait()
					check(t, err)
					if !strings.Contains(heard, `Accepted connection: "alice@`+lab.Name+`"`) {
						t.Errorf("the server did not accept alice:\n%s", heard)
					}
					if got := strings.Count(heard, `Received message: "greetings"`); got != 4 {
						t.Errorf("the server understood %d messages, want 4:\n%s", got, heard)
					}
				})
			}
		}
	})
}

// TestWithoutDaemon: the keytab is closed to nobody, and the same server without a daemon gets
// nowhere, whether the plugin finds no socket or there is no plugin.
func TestWithoutDaemon(t *testing.T) {
	r := realm(t)
	path := keytab(t)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the keytab's mode is %v (%v)", info.Mode(), err)
	}
	if out, err := r.Run(lab.Nobody, nil, "/bin/cat", path); err == nil || !strings.Contains(out, "Permission denied") {
		t.Errorf("nobody can read the keytab: %v", err)
	}
	for name, env := range map[string][]string{
		"plugin": r.PluginEnv(filepath.Join(r.Dir, "no-daemon")),
		"plain":  {"KRB5_KTNAME=" + path},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := r.Command(lab.Nobody, env, "/usr/bin/gss-server", "-port", "0", service)
			p, err := r.Start(cmd, r.Path("gss-server.log"))
			check(t, err)
			defer p.Kill()
			check(t, p.WaitOutput("GSS-API error", lab.Patience))
		})
	}
}

// TestContexts: an acceptor with nothing but the plugin, against MIT's initiator: every enctype
// with mutual authentication, without, with channel bindings, with a PAC; then messages both ways.
func TestContexts(t *testing.T) {
	overDaemons(t, func(t *testing.T, kind string) {
		d := daemon(t, kind, lab.Options{})
		acceptor := tool(t, lab.Nobody, d.PluginEnv()...)
		initiator := alice(t)
		check(t, acceptor.Acquire(""))
		for _, n := range enctypes {
			check(t, initiator.Enctypes(n))
			for _, c := range []struct {
				name     string
				flags    uint32
				bindings []byte
			}{
				{"mutual", lab.Usual | lab.Mutual, nil},
				{"non-mutual", lab.Usual, nil},
				{"mutual bindings", lab.Usual | lab.Mutual, []byte("tls-server-end-point:lab")},
				{"non-mutual bindings", lab.Usual, []byte("tls-server-end-point:lab")},
				{"no sequence", lab.Conf | lab.Integ | lab.Mutual, nil},
			} {
				t.Run(fmt.Sprintf("%d/%s", n, c.name), func(t *testing.T) {
					id, token, err := initiator.Init(serviceOf(n), c.flags, c.bindings)
					check(t, err)
					a, err := acceptor.Accept(token, c.bindings)
					check(t, err)
					if a.Client != "alice@"+lab.Name {
						t.Errorf("client %q", a.Client)
					}
					if got := a.Flags & (lab.Usual | lab.Mutual); got != c.flags {
						t.Errorf("flags %#x, want %#x among them", a.Flags, c.flags)
					}
					if bound := a.Flags&lab.ChannelBound != 0; bound != (c.bindings != nil) {
						t.Errorf("channel bound: %v", bound)
					}
					if mutual := c.flags&lab.Mutual != 0; mutual {
						complete, _, err := initiator.Step(id, a.Token)
						check(t, err)
						if !complete {
							t.Error("the initiator wants another token")
						}
					} else if len(a.Token) != 0 {
						t.Errorf("a token of %d bytes nobody asked for", len(a.Token))
					}
					check(t, lab.Converse(lab.End{Tool: initiator, ID: id}, lab.End{Tool: acceptor, ID: a.ID}))

					if got, _, err := acceptor.Key(a.ID); err != nil || got != n {
						t.Errorf("enctype %d, want %d (%v)", got, n, err)
					}
					q, err := acceptor.Inquire(a.ID)
					check(t, err)
					if q.Source != "alice@"+lab.Name || !q.Open || q.Local || q.Lifetime < 9*3600 || q.Lifetime > 10*3600+301 {
						t.Errorf("inquired %+v", q)
					}
					attrs, err := acceptor.Attributes(a.ID)
					check(t, err)
					if !slices.ContainsFunc(attrs, func(a lab.Attribute) bool {
						return a.Name == "urn:mspac:" && a.Authenticated && len(a.Value) > 0
					}) {
						t.Errorf("no authenticated PAC among the attributes %v", attrs)
					}
					check(t, acceptor.Delete(a.ID))
				})
			}
		}
	})
}
