package e2e

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gssproxyd/mech"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// captured is a call of the plugin's with the C daemon's answer, both as they went over the socket.
type captured struct{ Mark, Call, Reply string }

func captures(t *testing.T, path string) []captured {
	t.Helper()
	f, err := os.Open(path)
	check(t, err)
	defer f.Close()
	var list []captured
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<22)
	for s.Scan() {
		var c captured
		check(t, json.Unmarshal(s.Bytes(), &c))
		list = append(list, c)
	}
	check(t, s.Err())
	return list
}

// decode takes a record apart. The realm of the captures is renamed to the lab's: the names are of
// one length.
func decode[H xdr.Message](t *testing.T, text string, header H, body func(h H) xdr.Message) xdr.Message {
	t.Helper()
	b, err := hex.DecodeString(text)
	check(t, err)
	b = bytes.ReplaceAll(b, []byte("GSSPROXY.DEV"), []byte(lab.Name))
	d := xdr.NewDecoder(b[4:])
	header.Decode(d)
	m := body(header)
	m.Decode(d)
	check(t, d.Err())
	return m
}

// TestCapturedCalls makes the plugin's captured calls again, in order. Handles, contexts and tokens
// in them were made with keys that nobody has any more: where a call has one that an earlier reply
// gave out, it gets what this daemon gave out in that place; a token of a client outside the
// capture is made anew. Everything else goes out as it was, and the majors must be those of the
// capture.
func TestCapturedCalls(t *testing.T) {
	r := realm(t)
	const host = "host/kdc.gssproxy.dev"
	made(t, r.RandKey(host))
	hosts, err := r.Keytab("captures.keytab", host)
	check(t, err)
	clients := map[string]*lab.Tool{}
	for _, user := range []string{"names", "user"} {
		made(t, r.AddPrincipal(user, user))
		env, err := r.Kinit(user, user)
		check(t, err)
		clients[user+"@"+lab.Name] = tool(t, lab.Nobody, env...)
	}
	files, err := filepath.Glob("../../testdata/captures/*.jsonl")
	check(t, err)
	if len(files) != 2 {
		t.Fatalf("captures %v", files)
	}
	overDaemons(t, func(t *testing.T, kind string) {
		for _, file := range files {
			t.Run(filepath.Base(file), func(t *testing.T) {
				d := daemon(t, kind, lab.Options{Keytab: hosts, RCache: "none:", Config: config(svc{"captured", 0, []string{
					"cred_store = keytab:" + hosts, "trusted = yes", "allow_client_ccache_sync = yes",
					"allow_protocol_transition = yes", "allow_constrained_delegation = yes"}})})
				w := wire(t, d)
				live := again{map[string]xdr.Cred{}, map[string]xdr.Ctx{}, map[string][]byte{}, map[string]bool{}}
				calls := 0
				for i, c := range captures(t, file) {
					if c.Mark != "" {
						continue
					}
					var proc xdr.Proc
					arg := decode(t, c.Call, new(xdr.CallHeader), func(h *xdr.CallHeader) xdr.Message {
						proc = xdr.Proc(h.Procedure)
						return proc.Arg()
					})
					then := decode(t, c.Reply, new(xdr.ReplyHeader), func(*xdr.ReplyHeader) xdr.Message { return proc.Res() })
					check(t, live.put(arg, then, clients))
					now := proc.Res()
					h, err := w.Exchange(proc, arg, now)
					check(t, err)
					want, got := statusOf(then).MajorStatus, statusOf(now).MajorStatus
					if !lab.Success(h) || got != want {
						t.Fatalf("line %d, %v: %v %v, want %v", i+1, proc, h.Accepted.Outcome.Stat, lab.StatusError(*statusOf(now)), mech.Major(want).Text())
					}
					if err := live.take(kind, arg, then, now); err != nil {
						t.Fatalf("line %d, %v: %v", i+1, proc, err)
					}
					calls++
				}
				t.Logf("%d calls", calls)
			})
		}
	})
}

// again maps what the captured daemon gave out to what this one gave out in its place.
type again struct {
	creds    map[string]xdr.Cred
	contexts map[string]xdr.Ctx
	tokens   map[string][]byte
	tickets  map[string]bool // of whom for whom there is one
}

// put puts it into the arguments of a call.
func (a again) put(arg, then xdr.Message, clients map[string]*lab.Tool) error {
	cred := func(c *xdr.Opt[xdr.Cred]) error {
		if !c.Set {
			return nil
		}
		own, ok := a.creds[string(c.V.CredHandleReference)]
		if !ok {
			return fmt.Errorf("a handle of %d bytes that no reply gave out", len(c.V.CredHandleReference))
		}
		options := make([][]xdr.Option, len(c.V.Elements))
		for i, e := range c.V.Elements {
			options[i] = e.Options
		}
		c.V = own
		c.V.Elements = append([]xdr.CredElement(nil), own.Elements...)
		for i := range min(len(options), len(c.V.Elements)) {
			c.V.Elements[i].Options = options[i] // the caller's own
		}
		return nil
	}
	switch arg := arg.(type) {
	case *xdr.ArgAcquireCred:
		return cred(&arg.InputCredHandle)
	case *xdr.ArgInitSecContext:
		if err := cred(&arg.CredHandle); err != nil {
			return err
		}
		if arg.ContextHandle.Set {
			own, ok := a.contexts[string(arg.ContextHandle.V.ExportedContextToken)]
			if !ok {
				return fmt.Errorf("a context that no reply gave out")
			}
			arg.ContextHandle.V = own
		}
		if len(arg.InputToken.V) > 0 {
			own, ok := a.tokens[string(arg.InputToken.V)]
			if !ok {
				return fmt.Errorf("a token that no reply gave out")
			}
			arg.InputToken.V = own
		}
	case *xdr.ArgAcceptSecContext:
		if err := cred(&arg.CredHandle); err != nil {
			return err
		}
		if own, ok := a.tokens[string(arg.InputToken)]; ok {
			arg.InputToken = own
			return nil
		}
		from := string(then.(*xdr.ResAcceptSecContext).ContextHandle.V.SrcName.DisplayName)
		client, ok := clients[from]
		if !ok {
			return fmt.Errorf("a token of %q, who is nobody here", from)
		}
		var err error
		_, arg.InputToken, err = client.Init("host@kdc.gssproxy.dev", lab.Usual|lab.Mutual, nil)
		return err
	}
	return nil
}

// take remembers what two replies to one call gave out.
func (a again) take(kind string, arg, then, now xdr.Message) error {
	switch then := then.(type) {
	case *xdr.ResAcquireCred:
		now := now.(*xdr.ResAcquireCred)
		if then.OutputCredHandle.Set {
			a.creds[string(then.OutputCredHandle.V.CredHandleReference)] = now.OutputCredHandle.V
		}
	case *xdr.ResInitSecContext:
		now := now.(*xdr.ResInitSecContext)
		a.contexts[string(then.ContextHandle.V.ExportedContextToken)] = now.ContextHandle.V
		a.tokens[string(then.OutputToken.V)] = now.OutputToken.V
		ticket := fmt.Sprintf("%s for %s", now.ContextHandle.V.SrcName.DisplayName, now.ContextHandle.V.TargName.DisplayName)
		had := a.tickets[ticket]
		a.tickets[ticket] = true
		theirs, were := synced(then.Options)
		own, are := synced(now.Options)
		// Ours keeps tickets: a credential acquired later than one has it from the start, and
		// nothing comes to it.
		if kept := kind == "ours" && were && had && arg.(*xdr.ArgInitSecContext).CredHandle.Set; kept && !are {
			own = arg.(*xdr.ArgInitSecContext).CredHandle.V
		} else if were != are {
			return fmt.Errorf("the ticket of %s: a changed credential in the reply: %v, and in the capture: %v", ticket, are, were)
		}
		if were {
			a.creds[string(theirs.CredHandleReference)] = own
		}
	case *xdr.ResAcceptSecContext:
		a.tokens[string(then.OutputToken.V)] = now.(*xdr.ResAcceptSecContext).OutputToken.V
	}
	return nil
}

// synced is the credential a reply to INIT_SEC_CONTEXT gives in place of the caller's.
func synced(options []xdr.Option) (c xdr.Cred, ok bool) {
	for _, o := range options {
		if strings.TrimSuffix(string(o.Option), "\x00") == "sync_creds" {
			d := xdr.NewDecoder(o.Value)
			c.Decode(d)
			return c, d.Err() == nil
		}
	}
	return c, false
}

// TestSyncCreds: who gets a credential back when a ticket has come to it. With one of a file nobody
// does: what came is in the file.
func TestSyncCreds(t *testing.T) {
	r := realm(t)
	alices, err := r.Keytab("alice.keytab", "alice")
	check(t, err)
	overDaemons(t, func(t *testing.T, kind string) {
		dir := r.Path("sync")
		check(t, os.Mkdir(dir, 0o700))
		sync, store := "allow_client_ccache_sync = yes", "cred_store = client_keytab:"+alices
		var services []svc
		for name, lines := range map[string][]string{
			"on": {store, sync}, "off": {store}, "file": {store, sync, "cred_store = ccache:FILE:" + dir + "/cc"},
		} {
			services = append(services, svc{name, 0, append(lines, "socket = "+filepath.Join(dir, name))})
		}
		d := daemon(t, kind, lab.Options{DropIn: usersCaches, Config: config(append(services, svc{"lab", 0, nil})...)})
		ask := []xdr.Option{{Option: []byte("sync_modified_creds\x00"), Value: []byte("default\x00")}}
		for i, c := range []struct {
			service string
			handle  bool
			options []xdr.Option
			want    bool
		}{
			{"on", true, ask, true},
			{"on", false, ask, true},
			{"on", true, nil, false},
			{"on", false, nil, false},
			{"off", true, ask, false},
			{"off", false, ask, false},
			{"file", true, ask, false},
			{"file", false, ask, false},
			{"on", true, []xdr.Option{{Option: ask[0].Option, Value: []byte("other\x00")}}, false},
		} {
			w, err := d.WireAs(lab.Root, filepath.Join(dir, c.service))
			check(t, err)
			defer w.Close()
			target := fmt.Sprintf("sync%d@%s", i, lab.Host) // a ticket there is need of, whatever was asked before
			made(t, r.RandKey(fmt.Sprintf("sync%d/%s", i, lab.Host)))
			var handle *xdr.Cred
			if c.handle {
				var res xdr.ResAcquireCred
				check(t, w.Call(xdr.ProcAcquireCred, &xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate}, &res))
				check(t, lab.StatusError(res.Status))
				handle = &res.OutputCredHandle.V
			}
			out := initContext(t, w, handle, target, lab.Usual, c.options)
			check(t, lab.StatusError(out.Status))
			own, ok := synced(out.Options)
			if ok != c.want || len(out.Options) > 1 {
				t.Errorf("%s, with a handle %v, options %q: a credential in the reply: %v, want %v", c.service, c.handle, c.options, ok, c.want)
			}
			if !ok {
				continue
			}
			if got := string(own.DesiredName.DisplayName); got != "alice@"+lab.Name || len(own.Elements) != 1 || own.Elements[0].CredUsage != xdr.CredInitiate {
				t.Errorf("the credential in the reply is of %s: %+v", got, own.Elements)
			}
			// It has the ticket: a daemon that starts now and sees it for the first time adds
			// nothing.
			check(t, d.Restart())
			w, err = d.WireAs(lab.Root, filepath.Join(dir, c.service))
			check(t, err)
			defer w.Close()
			out = initContext(t, w, &own, target, lab.Usual, ask)
			check(t, lab.StatusError(out.Status))
			if len(out.Options) != 0 {
				t.Errorf("%s: a credential again, though nothing has changed", c.service)
			}
		}
	})
}
