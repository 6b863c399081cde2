package keystore_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gssproxyd/keystore"
	"gssproxyd/keystore/bolt"
	"gssproxyd/keystore/etcd"
	"gssproxyd/tests/lab"
)

// backends runs a test with each backend that a store can be in.
func backends(t *testing.T, test func(t *testing.T, b keystore.Backend)) {
	t.Run("memory", func(t *testing.T) { test(t, newMemory()) })
	t.Run("bolt", func(t *testing.T) { test(t, openBolt(t, filepath.Join(t.TempDir(), "store.db"))) })
	t.Run("etcd", func(t *testing.T) { test(t, openEtcd(t, lab.NewEtcd(t, 1)[0])) })
}

func openBolt(t *testing.T, path string) *bolt.Backend {
	t.Helper()
	b, err := bolt.Open(path)
	must(t, err)
	t.Cleanup(func() { must(t, b.Close()) })
	return b
}

func openEtcd(t *testing.T, e *lab.Etcd) *etcd.Backend {
	t.Helper()
	b, err := etcd.Open(t.Context(), etcd.Config{Endpoints: []string{e.Endpoint}, Prefix: "/gssproxyd/test"})
	must(t, err)
	t.Cleanup(func() { must(t, b.Close()) })
	return b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(name, value string, version uint64) keystore.Record {
	return keystore.Record{Name: name, Value: []byte(value), Version: version}
}

func commit(t *testing.T, b keystore.Backend, changes ...keystore.Record) uint64 {
	t.Helper()
	at, err := b.Commit(t.Context(), nil, changes...)
	must(t, err)
	return at
}

func TestBackendKeepsRecords(t *testing.T) {
	backends(t, func(t *testing.T, b keystore.Backend) {
		ctx := t.Context()
		if r, err := b.Get(ctx, "a/1"); err != nil || r.Version != 0 || r.Value != nil {
			t.Errorf("of a record that is not there: %+v, %v", r, err)
		}
		first := commit(t, b, put("a/2", "two", 0), put("a/1", "one", 0), put("b/1", "other", 0))
		second := commit(t, b, put("a/1", "uno", first))
		if second <= first {
			t.Errorf("the version went from %d to %d", first, second)
		}
		if r, err := b.Get(ctx, "a/1"); err != nil || r.Name != "a/1" || r.Version != second || string(r.Value) != "uno" {
			t.Errorf("%+v, %v", r, err)
		}
		records, at, err := b.List(ctx, "a/")
		must(t, err)
		if diff := cmp.Diff([]keystore.Record{put("a/1", "uno", second), put("a/2", "two", first)}, records); diff != "" || at != second {
			t.Errorf("at %d, -want +got:\n%s", at, diff)
		}
		commit(t, b, keystore.Record{Name: "a/1", Version: second})
		if r, err := b.Get(ctx, "a/1"); err != nil || r.Version != 0 {
			t.Errorf("of a record that was deleted: %+v, %v", r, err)
		}
		if records, _, err := b.List(ctx, ""); err != nil || len(records) != 2 {
			t.Errorf("%v, %v", records, err)
		}
	})
}

// A list is complete and of one moment, however long it is.
func TestBackendListsMany(t *testing.T) {
	backends(t, func(t *testing.T, b keystore.Backend) {
		const many = 1201
		for i := 0; i < many; i += 100 {
			var changes []keystore.Record
			for j := i; j < min(i+100, many); j++ {
				changes = append(changes, put(fmt.Sprintf("a/%05d", j), "x", 0))
			}
			commit(t, b, changes...)
		}
		records, _, err := b.List(t.Context(), "a/")
		must(t, err)
		for i, r := range records {
			if r.Name != fmt.Sprintf("a/%05d", i) {
				t.Fatalf("record %d is %s", i, r.Name)
			}
		}
		if len(records) != many {
			t.Errorf("%d records", len(records))
		}
	})
}

// Nothing is changed if one record is not as it is said to be.
func TestBackendCommitsAllOrNothing(t *testing.T) {
	backends(t, func(t *testing.T, b keystore.Backend) {
		ctx := t.Context()
		was := commit(t, b, put("a", "a", 0), put("b", "b", 0))
		now := commit(t, b, put("b", "B", was))
		kept := keystore.Record{Name: "b", Keep: true}
		for name, stale := range map[string][]keystore.Record{
			"changed":     {put("a", "x", was), put("b", "x", was)},
			"there":       {put("a", "x", was), put("b", "x", 0)},
			"not there":   {put("a", "x", was), put("c", "x", was)},
			"to delete":   {put("a", "x", was), {Name: "b", Version: was}},
			"to keep":     {put("a", "x", was), {Name: "b", Version: was, Keep: true}},
			"not to keep": {put("a", "x", was), kept},
		} {
			if _, err := b.Commit(ctx, nil, stale...); !errors.Is(err, keystore.ErrConflict) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if r, err := b.Get(ctx, "a"); err != nil || string(r.Value) != "a" {
			t.Errorf("%s, %v", r.Value, err)
		}
		kept.Version = now
		commit(t, b, put("a", "A", was), kept)
		if r, err := b.Get(ctx, "b"); err != nil || string(r.Value) != "B" || r.Version != now {
			t.Errorf("a record that was to be kept: %+v, %v", r, err)
		}
	})
}

func TestBackendWatch(t *testing.T) {
	backends(t, func(t *testing.T, b keystore.Backend) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		start := commit(t, b, put("a/1", "before", 0), put("b/1", "before", 0))
		next, stop := iter.Pull2(b.Watch(ctx, "a/", start))
		defer stop()
		pulled := func() keystore.Committed {
			t.Helper()
			c, err, ok := next()
			if !ok || err != nil {
				t.Fatalf("%v, %t", err, ok)
			}
			return c
		}
		first := commit(t, b, put("a/2", "new", 0))
		commit(t, b, put("b/2", "of no interest", 0))
		second := commit(t, b, put("a/1", "changed", start), keystore.Record{Name: "a/2", Version: first})
		if diff := cmp.Diff(keystore.Committed{At: first, Records: []keystore.Record{put("a/2", "new", first)}}, pulled()); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		want := keystore.Committed{At: second, Records: []keystore.Record{put("a/1", "changed", second), {Name: "a/2", Version: second}}}
		if diff := cmp.Diff(want, pulled()); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		for i := range uint64(20) { // in their order, while they come
			commit(t, b, put(fmt.Sprintf("a/x%d", i), "x", 0))
			if c := pulled(); c.Records[0].Name != fmt.Sprintf("a/x%d", i) {
				t.Errorf("%d: %+v", i, c)
			}
		}
		cancel()
		if c, err, ok := next(); ok {
			t.Errorf("after the end: %+v, %v", c, err)
		}
	})
}

func TestBackendLock(t *testing.T) {
	backends(t, func(t *testing.T, b keystore.Backend) {
		ctx := t.Context()
		one, err := b.Lock(ctx, "one")
		must(t, err)
		other, err := b.Lock(ctx, "other") // is another one
		must(t, err)
		must(t, other.Unlock(ctx))

		impatient, cancel := context.WithCancel(ctx)
		got := make(chan error)
		go func() {
			_, err := b.Lock(impatient, "one")
			got <- err
		}()
		cancel()
		if err := <-got; !errors.Is(err, context.Canceled) {
			t.Errorf("who waits no more: %v", err)
		}

		// One at a time has it: the value read under the lock is the one written under it.
		const holders = 8
		version := commit(t, b, put("counter", "", 0))
		for range holders {
			go func() {
				got <- func() error {
					l, err := b.Lock(ctx, "one")
					if err != nil {
						return err
					}
					r, err := b.Get(ctx, "counter")
					if err != nil {
						return err
					}
					if _, err := b.Commit(ctx, l, put("counter", string(r.Value)+"x", r.Version)); err != nil {
						return err
					}
					return l.Unlock(ctx)
				}()
			}()
		}
		if _, err := b.Commit(ctx, one, put("counter", "x", version)); err != nil {
			t.Errorf("who has the lock: %v", err)
		}
		must(t, one.Unlock(ctx))
		for range holders {
			must(t, <-got)
		}
		r, err := b.Get(ctx, "counter")
		must(t, err)
		if string(r.Value) != strings.Repeat("x", holders+1) {
			t.Errorf("%q", r.Value)
		}

		// Who had it once has no say any more, though nobody else has changed the record.
		<-one.Lost()
		if _, err := b.Commit(ctx, one, put("counter", "stale", r.Version)); !errors.Is(err, keystore.ErrLockLost) {
			t.Errorf("a lock that was let go of: %v", err)
		}
		must(t, one.Unlock(ctx)) // twice is as good as once
	})
}

// A writer that slept while its lease ran out does not know it; etcd does.
func TestEtcdLockLost(t *testing.T) {
	server := lab.NewEtcd(t, 1)[0]
	b, ctx := openEtcd(t, server), t.Context()
	l, err := b.Lock(ctx, "one")
	must(t, err)
	version := commit(t, b, put("a", "a", 0))
	out, err := server.Ctl(ctx, "lease", "list")
	must(t, err)
	lines := strings.Fields(out)
	if _, err := server.Ctl(ctx, "lease", "revoke", lines[len(lines)-1]); err != nil {
		t.Fatal(err)
	}
	other, err := openEtcd(t, server).Lock(ctx, "one")
	must(t, err)
	if _, err := b.Commit(ctx, l, put("a", "stale", version)); !errors.Is(err, keystore.ErrLockLost) {
		t.Errorf("a writer without its lease: %v", err)
	}
	<-l.Lost()
	if _, err := b.Commit(ctx, l, put("a", "stale", version)); !errors.Is(err, keystore.ErrLockLost) {
		t.Errorf("when it knows: %v", err)
	}
	must(t, l.Unlock(ctx))
	if _, err := b.Commit(ctx, other, put("a", "new", version)); err != nil {
		t.Errorf("who has the lock now: %v", err)
	}
	must(t, other.Unlock(ctx))
}

// Whoever comes too late to learn what was changed is told so.
func TestBackendForgets(t *testing.T) {
	forgot := func(t *testing.T, b keystore.Backend, after uint64) {
		t.Helper()
		for c, err := range b.Watch(t.Context(), "", after) {
			if !errors.Is(err, keystore.ErrCompacted) {
				t.Errorf("%+v, %v", c, err)
			}
			return
		}
		t.Error("nothing was said")
	}
	t.Run("bolt", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "store.db")
		b, err := bolt.Open(path)
		must(t, err)
		first := commit(t, b, put("a", "a", 0))
		second := commit(t, b, put("b", "b", 0))
		must(t, b.Close())
		b = openBolt(t, path)
		forgot(t, b, first)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for c, err := range b.Watch(ctx, "", second) {
			t.Errorf("after what is known: %+v, %v", c, err)
		}
	})
	t.Run("etcd", func(t *testing.T) {
		server := lab.NewEtcd(t, 1)[0]
		b := openEtcd(t, server)
		first := commit(t, b, put("a", "a", 0))
		last := commit(t, b, put("b", "b", 0))
		if _, err := server.Ctl(t.Context(), "compact", fmt.Sprint(last)); err != nil {
			t.Fatal(err)
		}
		forgot(t, b, first-1)
	})
}

// At its quota a cluster takes no writes: the error says what to do, and that helps. Before, it is said
// that it will come.
func TestEtcdFull(t *testing.T) {
	const quota = 4 << 20
	server := lab.NewEtcd(t, 1, "--quota-backend-bytes", fmt.Sprint(quota))[0]
	b, ctx := openEtcd(t, server), t.Context()
	if wrong := b.Room(ctx); len(wrong) > 0 {
		t.Errorf("of an empty database: %q", wrong)
	}
	const what = "etcdctl compaction, defrag"
	var version uint64
	for value := strings.Repeat("x", 100<<10); ; {
		at, err := b.Commit(ctx, nil, put("a", value, version))
		if err != nil {
			if !strings.Contains(err.Error(), "reached its quota") || !strings.Contains(err.Error(), what) {
				t.Error(err)
			}
			break
		}
		version = at
	}
	if wrong := b.Room(ctx); len(wrong) != 1 || !strings.Contains(wrong[0], "etcd "+server.Endpoint+": the alarm NOSPACE is raised, and nothing can be written: ") || !strings.Contains(wrong[0], what) {
		t.Errorf("%q", wrong)
	}
	if _, err := b.Lock(ctx, "one"); err == nil || !strings.Contains(err.Error(), what) {
		t.Errorf("a lock: %v", err)
	}
	r, err := b.Get(ctx, "a")
	if err != nil || r.Version < version { // the write that finds it full may be made all the same
		t.Errorf("what is there cannot be read: version %d, not %d, %v", r.Version, version, err)
	}
	version = r.Version
	page, err := os.ReadFile("../docs/keystored.8") // has the commands
	must(t, err)
	_, block, _ := strings.Cut(string(page), "Where the alarm is raised:\n.Bd -literal -offset indent\n")
	block, _, found := strings.Cut(block, ".Ed\n")
	if !found {
		t.Fatal("keystored(8) does not say what to do")
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-e", "-c", strings.ReplaceAll(block, `\e`, `\`))
	cmd.Env = []string{"PATH=/usr/bin:/bin", "ETCDCTL_API=3", "ETCDCTL_ENDPOINTS=" + server.Endpoint}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, block, out)
	}
	if wrong := b.Room(ctx); len(wrong) > 0 {
		t.Errorf("%q", wrong)
	}
	commit(t, b, put("a", "a", version))
}

// Where etcd asks who somebody is, an instance is known again after a member has started anew, which has
// forgotten its token. It may do nothing elsewhere.
func TestEtcdAuthentication(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	ca := lab.NewAuthority(t, dir+"/ca")
	server := (&lab.EtcdCluster{Members: 1, CA: ca, Password: "xyzzy-plugh"}).Start(t)[0]
	ca.Issue(t, dir)
	pair, err := tls.LoadX509KeyPair(dir+"/cert.pem", dir+"/key.pem")
	must(t, err)
	pem, err := os.ReadFile(ca.Dir + "/ca.pem")
	must(t, err)
	config := etcd.Config{
		Endpoints: []string{server.Endpoint}, TLS: &tls.Config{RootCAs: x509.NewCertPool(), Certificates: []tls.Certificate{pair}},
		Username: "keystored", Password: "xyzzy-plugh", Prefix: "/keystored/",
	}
	config.TLS.RootCAs.AppendCertsFromPEM(pem)
	for what, bad := range map[string]func(c *etcd.Config){
		"invalid user ID or password": func(c *etcd.Config) { c.Password = "xyzzy" },
		"etcdserver: ":                func(c *etcd.Config) { c.Username = "" },
		"permission denied":           func(c *etcd.Config) { c.Prefix = "/elsewhere" },
		"certificate":                 func(c *etcd.Config) { c.TLS = &tls.Config{RootCAs: c.TLS.RootCAs} },
	} {
		c := config
		bad(&c)
		b, err := etcd.Open(ctx, c)
		if err == nil {
			must(t, b.Close())
		}
		if err == nil || !strings.Contains(err.Error(), what) && what != "certificate" {
			t.Errorf("%v, want %s", err, what)
		}
	}
	b, err := etcd.Open(ctx, config)
	must(t, err)
	defer b.Close()
	version := commit(t, b, put("a", "a", 0))
	for range 3 {
		watching, stop := context.WithCancel(ctx)
		for _, err := range b.Watch(watching, "a", version-1) {
			must(t, err)
			break
		}
		stop()
		server.Kill()
		must(t, server.Start())
		must(t, server.Await())
		var l keystore.Lock
		lab.Await(t, "the member is not connected again", func() bool {
			l, err = b.Lock(ctx, "one")
			return !errors.Is(err, context.DeadlineExceeded)
		})
		must(t, err)
		version, err = b.Commit(ctx, l, put("a", "b", version))
		must(t, err)
		must(t, l.Unlock(ctx))
	}
}

// A member that has lost the others, and can be reached, is passed over. It is one of another cluster
// here, whose others are dead; tests/fleet cuts real ones off.
func TestEtcdCutOff(t *testing.T) {
	server, lost := lab.NewEtcd(t, 1)[0], lab.NewEtcd(t, 3)
	lost[1].Kill()
	lost[2].Kill()
	ctx := t.Context()
	lab.Await(t, "the member does not know that it is alone", func() bool {
		out, err := lost[0].Ctl(ctx, "endpoint", "status", "--write-out=json")
		return err == nil && !strings.Contains(out, `"leader":`)
	})
	b, err := etcd.Open(ctx, etcd.Config{Endpoints: []string{lost[0].Endpoint, server.Endpoint}, Prefix: "/gssproxyd/test"})
	must(t, err)
	defer b.Close()
	var version uint64
	for i := range 50 {
		l, err := b.Lock(ctx, "one")
		must(t, err)
		if version, err = b.Commit(ctx, l, put("a", fmt.Sprint(i), version)); err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
		r, err := b.Get(ctx, "a")
		if err != nil || r.Version != version {
			t.Fatalf("change %d: %+v, %v", i, r, err)
		}
		must(t, l.Unlock(ctx))
	}
	server.Kill()
	if _, err := b.Get(ctx, "a"); err == nil || !strings.Contains(err.Error(), "look whether a majority of its members runs") {
		t.Errorf("when there is no other: %v", err)
	}
}

// Calls end with their context, and in time where the cluster does not answer.
func TestEtcdGone(t *testing.T) {
	server := lab.NewEtcd(t, 1)[0]
	b := openEtcd(t, server)
	server.Kill()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Get(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := b.Commit(t.Context(), nil, put("a", "a", 0)); err == nil || errors.Is(err, keystore.ErrConflict) {
		t.Errorf("%v", err)
	}
	if _, err := etcd.Open(t.Context(), etcd.Config{Endpoints: []string{server.Endpoint}}); err == nil || !strings.Contains(err.Error(), server.Endpoint) {
		t.Errorf("%v", err)
	}
}

func TestBoltIsForOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	openBolt(t, path)
	if _, err := bolt.Open(path); err == nil || !strings.Contains(err.Error(), "process ") || !strings.Contains(err.Error(), path) {
		t.Errorf("%v", err)
	}
}
