package fleet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"gssproxyd/tests/lab"
)

// TestSealed is the life of a sealed keytab under a daemon of another user: root's command seals to the
// identity that it makes for that user; programs accept and initiate with it; it is rotated under
// traffic; a bad file leaves the keys of before in use, and that is said. In all that the daemon
// leaves behind there is no key.
func TestSealed(t *testing.T) {
	r := realm(t)
	becomes, err := lab.OursRunsAs()
	check(t, err)
	global := ""
	if becomes == lab.Root {
		becomes, global = lab.Nobody, "  run_as_user = nobody\n"
	}
	principal, target := "sealed/"+lab.Host, "sealed@"+lab.Host
	check(t, r.RandKey(principal))
	check(t, r.RandKey("sealed-client"))
	dir := r.Path("sealed")
	check(t, os.Mkdir(dir, 0o755))
	accept, initiate := dir+"/web.keytab.age", dir+"/client.keytab.age"
	front, log := dir+"/front.sock", dir+"/audit/audit.log"
	check(t, errors.Join(os.Mkdir(filepath.Dir(log), 0o700), os.Chown(filepath.Dir(log), int(becomes.UID), int(becomes.GID))))
	text := "[gssproxy]\n  debug_level = 1\n" + global + "  audit = " + log + "\n" +
		"[service/accept]\n  mechs = krb5\n  euid = 0\n  allow_any_uid = yes\n  cred_usage = accept\n  cred_store = keytab:SEALED:" + accept + "\n" +
		"[service/initiate]\n  mechs = krb5\n  euid = 0\n  allow_any_uid = yes\n  cred_usage = initiate\n  socket = " + front + "\n  cred_store = client_keytab:SEALED:" + initiate + "\n"
	d := daemon(t, lab.Options{Dir: dir, Config: text, Keytab: dir + "/none", Becomes: becomes})

	// seal makes a keytab of what the KDC has, which the daemon's user may read by its group, and
	// seals it by rename.
	seal := func(out string, names ...string) {
		t.Helper()
		clear, err := r.Keytab("clear.keytab", names...)
		check(t, err)
		check(t, errors.Join(os.Chown(clear, 0, int(becomes.GID)), os.Chmod(clear, 0o640)))
		said, err := d.Administer(lab.Root, "keytab", "seal", clear, out, "--write", "--remove", "--force")
		if err != nil {
			t.Fatalf("%v\n%s", err, said)
		}
		if _, err := os.Lstat(clear); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(said, "Opened and compared") {
			t.Fatalf("%v\n%s", err, said)
		}
	}
	// says waits until the command keytabs has the words.
	says := func(what string, words *regexp.Regexp) {
		t.Helper()
		lab.Await(t, what, func() bool {
			out, _ := d.Administer(lab.Root, "keytabs") // whose exit status is about drift and errors
			return words.MatchString(out)
		})
	}
	says("no file yet", regexp.MustCompile(`(?m)^SEALED:`+regexp.QuoteMeta(accept)+`: of accept \(keytab\)\n  the file cannot be used as it now is: .*no such file`))
	seal(accept, principal)
	seal(initiate, "sealed-client")
	says("the keys", regexp.MustCompile(`(?m)^SEALED:\S+/web.keytab.age: of accept \(keytab\)\n  PRINCIPAL`))
	says("the keys to initiate with", regexp.MustCompile(`(?m)^SEALED:\S+/client.keytab.age: of initiate \(client_keytab\)\n  PRINCIPAL`))

	// Traffic, by the plugin, with tickets of every version there has been.
	acceptor := func() *lab.Tool {
		g := tool(t, lab.Nobody, d.PluginEnv()...)
		check(t, g.Acquire(target))
		return g
	}
	const rotations = 3
	ctx, stop := context.WithCancelCause(context.Background())
	done := errors.New("done")
	var clients sync.WaitGroup
	defer clients.Wait()
	defer stop(done)
	counts := make([]atomic.Int64, rotations+1)
	client := func(n int) {
		i, a := alice(t), acceptor()
		clients.Go(func() {
			for ctx.Err() == nil {
				if err := acceptThrough(i, a, target); err != nil {
					stop(fmt.Errorf("client %d after %d accepts: %w", n, counts[n].Load(), err))
				}
				counts[n].Add(1)
			}
		})
		// Everybody has used the keytab since.
		for k := range n + 1 {
			before := counts[k].Load()
			lab.Await(t, fmt.Sprintf("accepts of client %d", k), func() bool { return ctx.Err() != nil || counts[k].Load() > before+5 })
		}
	}
	client(0)
	for n := 1; n <= rotations; n++ {
		check(t, r.Rotate(principal))
		seal(accept, principal)
		client(n)
	}

	// As whom the sealed client keytab says.
	fronts := tool(t, lab.Nobody, r.PluginEnv(front)...)
	a := acceptor()
	_, token, err := fronts.Init(target, lab.Usual, nil)
	check(t, err)
	got, err := a.Accept(token, nil)
	check(t, err)
	if got.Client != "sealed-client@"+lab.Name {
		t.Errorf("initiated as %s", got.Client)
	}

	// What is wrong with a file is said, and the keys of before stay.
	good, err := os.ReadFile(accept)
	check(t, err)
	put := func(content []byte) {
		t.Helper()
		check(t, os.WriteFile(accept+".new", content, 0o644))
		check(t, os.Rename(accept+".new", accept))
	}
	elsewhere := r.Path("elsewhere")
	check(t, os.Mkdir(elsewhere, 0o700))
	clear, err := r.Keytab("clear.keytab", principal)
	check(t, err)
	foreign := filepath.Join(elsewhere, "foreign.age")
	out, err := r.Run(lab.Root, nil, r.Gssproxyd, "keytab", "seal", clear, foreign, "--write", "--state-dir", elsewhere)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	others, err := os.ReadFile(foreign)
	check(t, err)
	for _, bad := range []struct {
		what string
		make func()
		want string
	}{
		{"cut off", func() { put(good[:len(good)-20]) }, "cut off or changed"},
		{"sealed to another host", func() { put(others) }, "not sealed to this host, whose recipient is age1"},
		{"where others can write", func() { put(good); check(t, os.Chmod(dir, 0o777)) }, "has mode 0777, so others could put another file there"},
	} {
		bad.make()
		says(bad.what, regexp.MustCompile(`(?m)^SEALED:\S+/web.keytab.age: of accept \(keytab\)\n  the file cannot be used as it now is: .*`+bad.want+`.*\n  PRINCIPAL`))
		lab.Await(t, bad.what+", in the log", func() bool { return strings.Contains(d.Output(), bad.want) })
		client := alice(t)
		check(t, acceptThrough(client, a, target))
	}
	check(t, os.Chmod(dir, 0o755))
	says("well again", regexp.MustCompile(`(?m)^SEALED:\S+/web.keytab.age: of accept \(keytab\)\n  PRINCIPAL`))

	stop(done)
	clients.Wait()
	if err := context.Cause(ctx); err != done {
		t.Error(err)
	}
	check(t, d.Restart())
	check(t, acceptThrough(alice(t), acceptor(), target))
	check(t, d.Stop())
	everyFile(t, dir)
	lines, err := os.ReadFile(log)
	check(t, err)
	if !strings.Contains(string(lines), `"source":"SEALED:`+accept) {
		t.Errorf("the audit log does not say where keys came from:\n%s", tail(string(lines), 4<<10))
	}
}

// TestKeysPage runs the commands of docs/keys.md as they are written, up to where the TPM comes in:
// from a clear keytab to a sealed one in two commands, under a daemon that serves, and one that was
// sealed elsewhere.
func TestKeysPage(t *testing.T) {
	lab.NeedPrograms(t, "/usr/bin/age", "/usr/bin/age-keygen")
	r := realm(t)
	page, err := os.ReadFile("../../docs/keys.md")
	check(t, err)
	text, _, found := strings.Cut(string(page), "## The host's identity")
	blocks := regexp.MustCompile(`(?m)(?:^    .*\n)+`).FindAllString(text, -1)
	if !found || len(blocks) != 5 {
		t.Fatalf("%d blocks", len(blocks))
	}
	dir := r.Path("keys-page")
	etc, bin := dir+"/etc", dir+"/bin"
	for _, d := range []string{dir, etc, bin} {
		check(t, os.Mkdir(d, 0o755))
	}
	principal, target := "keys/"+lab.Host, "keys@"+lab.Host
	check(t, r.RandKey(principal))
	keytab := etc + "/http.keytab"
	check(t, r.Ktadd(keytab, principal))
	const line = "    cred_store = keytab:/etc/gssproxy/http.keytab\n"
	here := strings.NewReplacer("/etc/gssproxy", etc)
	conf := here.Replace("[service/http]\n    mechs = krb5\n    euid = 0\n    allow_any_uid = yes\n    cred_usage = accept\n" + line)
	d := daemon(t, lab.Options{Dir: dir, Config: conf, Keytab: dir + "/none"})
	// The command finds its daemon as it does where there is one.
	check(t, os.WriteFile(bin+"/gssproxyd", fmt.Appendf(nil, "#!/bin/sh\nGSSPROXYD_STATE_DIR=%[1]s/state exec %[2]s \"$@\" -c %[1]s/gssproxy.conf -C %[1]s/conf.d -s %[3]s\n", dir, r.Gssproxyd, d.Socket), 0o755))
	run := func(block string) string {
		t.Helper()
		cmd := r.Command(lab.Root, []string{"PATH=" + bin + ":/usr/bin:/bin"}, "/bin/sh", "-e", "-c", here.Replace(block))
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s\n%s", err, block, out)
		}
		check(t, r.Scan(block, out))
		return string(out)
	}
	g := tool(t, lab.Nobody, d.PluginEnv()...)
	check(t, g.Acquire(target))
	works := func() {
		t.Helper()
		check(t, acceptThrough(alice(t), g, target))
	}
	works()
	run(blocks[0])
	works()
	check(t, d.Configure(strings.Replace(conf, here.Replace(line), here.Replace(blocks[1]), 1)))
	run(blocks[2])
	works()
	if _, err := os.Lstat(keytab); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the clear keytab: %v", err)
	}
	out, err := d.Administer(lab.Root, "keytabs")
	check(t, err)
	if !strings.HasPrefix(out, "SEALED:"+keytab+".age: of http (keytab)\n  PRINCIPAL") {
		t.Error(out)
	}

	// Elsewhere, new keys.
	check(t, r.Rotate(principal))
	check(t, r.Ktadd(dir+"/http.keytab", principal))
	run(blocks[3])
	run(blocks[4])
	check(t, os.Rename(dir+"/http.keytab.age", keytab+".age"))
	works()
	check(t, os.Remove(dir+"/http.keytab"))
	check(t, d.Stop())
	everyFile(t, dir)
}
