package keytab

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestFileComesLater(t *testing.T) {
	for _, test := range []struct {
		name string
		path string // in a temp dir
		make func(t *testing.T, path string)
	}{
		{"file", "a.keytab", func(t *testing.T, path string) { write(t, path, encode(service(1))) }},
		{"by rename", "a.keytab", func(t *testing.T, path string) { replace(t, path, encode(service(1))) }},
		{"directories too", "d/e/a.keytab", func(t *testing.T, path string) {
			mkdir(t, filepath.Dir(filepath.Dir(path)))
			mkdir(t, filepath.Dir(path))
			write(t, path, encode(service(1)))
		}},
		{"dangling link", "a.keytab", func(t *testing.T, path string) {
			symlink(t, "b/c.keytab", path)
			mkdir(t, filepath.Dir(path)+"/b")
			write(t, filepath.Dir(path)+"/b/c.keytab", encode(service(1)))
		}},
		{"record by record", "a.keytab", func(t *testing.T, path string) {
			file := encode(service(1))
			write(t, path, file[:2])
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for i := 2; i < len(file); i += 16 {
				f.Write(file[i:min(i+16, len(file))])
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), test.path)
			s, log := newSet(quick)
			k := mustOpen(t, s, path)
			if k.Ring().Len() != 0 || k.Err() == nil || k.Ring().Name() != "FILE:"+path {
				t.Fatalf("missing file: %d keys in %s, %v", k.Ring().Len(), k.Ring().Name(), k.Err())
			}
			if !strings.Contains(log.String(), "level=ERROR") || !strings.Contains(log.String(), "no such file") {
				t.Errorf("no alarm:\n%s", log)
			}
			test.make(t, path)
			becomes(t, k, "1")
			within(t, "no error", func() bool { return k.Err() == nil && k.Ring().Len() == 1 })
		})
	}
}

// TestMadeMeanwhile: a directory that is made after the way to the file was looked at, and before what there is of it
// is watched, is watched too.
func TestMadeMeanwhile(t *testing.T) {
	top := t.TempDir()
	path := filepath.Join(top, "d/e/a.keytab")
	s, _ := newSet(quick)
	k := mustOpen(t, s, path)
	n := s.notify
	n.arming.Lock()
	mkdir(t, top+"/d")
	within(t, "it is looked at", func() bool {
		stacks := make([]byte, 1<<20)
		return bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("(*notifier).follow("))
	})
	mkdir(t, top+"/d/e")
	n.arming.Unlock()
	within(t, "it is followed", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return len(n.cares[path]) > 0
	})
	write(t, path, encode(service(1)))
	becomes(t, k, "1")
}

func TestRotation(t *testing.T) {
	v1, v12, v2 := encode(service(1)), encode(service(1), service(2)), encode(service(2))
	for _, test := range []struct {
		name   string
		setup  func(t *testing.T, path string)
		change func(t *testing.T, path string)
		want   string
	}{
		{"rename into place", nil, func(t *testing.T, path string) { replace(t, path, v12) }, "1 2"},
		{"rename into place, old version gone", nil, func(t *testing.T, path string) { replace(t, path, v2) }, "2"},
		{"rewrite in place", nil, func(t *testing.T, path string) { write(t, path, v12) }, "1 2"},
		{"rewrite in place, same size", nil, func(t *testing.T, path string) { write(t, path, v2) }, "2"},
		{"append", nil, func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			f.Write(v2[2:])
		}, "1 2"},
		{"append as MIT does", nil, func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			f.WriteAt(append(make([]byte, 4), v2[6:]...), int64(len(v1))) // length 0: not there yet
			time.Sleep(5 * time.Millisecond)
			f.WriteAt(v2[2:6], int64(len(v1)))
		}, "1 2"},
		{"unlink and create", nil, func(t *testing.T, path string) {
			os.Remove(path)
			time.Sleep(10 * time.Millisecond)
			write(t, path, v12)
		}, "1 2"},
		{"renamed away and back", nil, func(t *testing.T, path string) {
			rename(t, path, path+".old")
			rename(t, path+".old", path)
			replace(t, path, v12)
		}, "1 2"},
		{"hard link over it", nil, func(t *testing.T, path string) {
			write(t, path+".x", v12)
			os.Remove(path)
			if err := os.Link(path+".x", path); err != nil {
				t.Fatal(err)
			}
		}, "1 2"},
		{"link to a file, target rewritten", func(t *testing.T, path string) {
			mkdir(t, path+".d")
			write(t, path+".d/target", v1)
			symlink(t, path+".d/target", path)
		}, func(t *testing.T, path string) { write(t, path+".d/target", v12) }, "1 2"},
		{"link turned to another file", func(t *testing.T, path string) {
			mkdir(t, path+".d")
			write(t, path+".d/one", v1)
			write(t, path+".d/two", v12)
			symlink(t, path+".d/one", path)
		}, func(t *testing.T, path string) {
			symlink(t, path+".d/two", path+".link")
			rename(t, path+".link", path)
		}, "1 2"},
		{"..data swapped", func(t *testing.T, path string) {
			dir := filepath.Dir(path)
			mkdir(t, dir+"/..2026_1")
			write(t, dir+"/..2026_1/"+filepath.Base(path), v1)
			symlink(t, "..2026_1", dir+"/..data")
			symlink(t, "..data/"+filepath.Base(path), path)
		}, func(t *testing.T, path string) {
			dir := filepath.Dir(path)
			for n, content := range [][]byte{2: v1, 3: v12} {
				if content == nil {
					continue
				}
				d := fmt.Sprintf("..2026_%d", n)
				mkdir(t, dir+"/"+d)
				write(t, dir+"/"+d+"/"+filepath.Base(path), content)
				symlink(t, d, dir+"/..data_tmp")
				rename(t, dir+"/..data_tmp", dir+"/..data")
				os.RemoveAll(fmt.Sprintf("%s/..2026_%d", dir, n-1))
			}
		}, "1 2"},
		{"linked directory turned", func(t *testing.T, path string) {
			// path = <dir>/a.keytab where <dir> becomes a link
			dir := filepath.Dir(path)
			rename(t, dir, dir+".1")
			write(t, dir+".1/"+filepath.Base(path), v1)
			symlink(t, dir+".1", dir)
		}, func(t *testing.T, path string) {
			dir := filepath.Dir(path)
			mkdir(t, dir+".2")
			write(t, dir+".2/"+filepath.Base(path), v12)
			symlink(t, dir+".2", dir+".new")
			rename(t, dir+".new", dir)
		}, "1 2"},
		{"directory replaced", nil, func(t *testing.T, path string) {
			dir := filepath.Dir(path)
			mkdir(t, dir+".new")
			write(t, dir+".new/"+filepath.Base(path), v12)
			rename(t, dir, dir+".old")
			rename(t, dir+".new", dir)
		}, "1 2"},
		{"directory removed and made again", nil, func(t *testing.T, path string) {
			dir := filepath.Dir(path)
			os.RemoveAll(dir)
			mkdir(t, dir)
			write(t, path, v12)
		}, "1 2"},
		{"twice within one clock tick", nil, func(t *testing.T, path string) {
			write(t, path, encode(service(9)))
			write(t, path, v2)
		}, "2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "keys", "a.keytab")
			mkdir(t, filepath.Dir(path))
			if test.setup != nil {
				test.setup(t, path)
			} else {
				write(t, path, v1)
			}
			p := quick
			p.alarm = limit // a busy machine may stop the change halfway
			s, log := newSet(p)
			k := mustOpen(t, s, path)
			if got := versions(k.Ring()); got != "1" {
				t.Fatalf("at first %q", got)
			}
			test.change(t, path)
			becomes(t, k, test.want)
			replace(t, path, encode(service(1), service(2), service(3))) // and the watch goes on
			becomes(t, k, "1 2 3")
			within(t, "no error", func() bool { return k.Err() == nil && k.Ring().Len() == 3 })
			if strings.Contains(log.String(), "level=ERROR") || strings.Contains(log.String(), "no change notification") {
				t.Errorf("alarm, or polled:\n%s", log)
			}
		})
	}
}

// The file is rewritten up to every length, and stays so: the old ring stays, with an alarm, until
// it is whole.
func TestHalfWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.keytab")
	old, whole := encode(service(1)), encode(service(1), service(2))
	write(t, path, old)
	p := quick
	p.alarm, p.retry = 4*time.Millisecond, time.Millisecond
	s, log := newSet(p)
	k := mustOpen(t, s, path)
	for n := range whole {
		if n == 2 || n == len(old) {
			continue // ends between two records: a whole, smaller file
		}
		write(t, path, whole[:n])
		within(t, fmt.Sprintf("alarm at %d bytes", n), func() bool { return k.Err() != nil })
		if got := versions(k.Ring()); got != "1" {
			t.Fatalf("%d bytes: ring %q", n, got)
		}
		if err := k.Err(); !strings.Contains(err.Error(), "byte ") {
			t.Errorf("%d bytes: %v", n, err)
		}
		write(t, path, old)
		within(t, "no error", func() bool { return k.Err() == nil })
	}
	text := log.String()
	for _, want := range []string{"level=ERROR", "keytab=" + path, "byte 2: record of", "hint=", "stay in use", "well again"} {
		if !strings.Contains(text, want) {
			t.Errorf("log lacks %q:\n%.2000s", want, text)
		}
	}
	write(t, path, whole)
	becomes(t, k, "1 2")
}

func TestUnprotected(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.keytab")
	write(t, path, encode(service(1)))
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	s, log := newSet(quick)
	k := mustOpen(t, s, path)
	warnings := func(want int) {
		t.Helper()
		if got := strings.Count(log.String(), "level=WARN"); got != want {
			t.Errorf("%d warnings, want %d:\n%s", got, want, log)
		}
	}
	if warnings(1); !strings.Contains(log.String(), "mode 0644") {
		t.Errorf("no mode:\n%s", log)
	}
	for i, mode := range []os.FileMode{0o640, 0o646} { // put right, and wrong again
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		k.Refresh(t.Context(), k.Ring())
		warnings(1 + i)
	}
}

func TestPolling(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.keytab")
	write(t, path, encode(service(1)))
	s, _ := newSet(quick)
	eventless(s)
	k := mustOpen(t, s, path)
	if err := k.Err(); err != nil || k.Ring().Len() != 1 {
		t.Errorf("%d keys, %v", k.Ring().Len(), err)
	}
	replace(t, path, encode(service(1), service(2)))
	becomes(t, k, "1 2")
	write(t, path, encode(service(2)))
	becomes(t, k, "2")
}

// More keytabs than a user may have inotify instances, opened, rotated and closed at the same time.
func TestManyKeytabs(t *testing.T) {
	const n = 300
	dir := t.TempDir()
	p := quick
	p.alarm = limit // a busy machine may stop a writer halfway
	s, log := newSet(p)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			path := fmt.Sprintf("%s/%d.keytab", dir, i)
			write(t, path, encode(service(1)))
			k, err := s.OpenOptional(path)
			if err != nil {
				t.Error(err)
				return
			}
			defer k.Close()
			write(t, path, encode(service(1), service(2)))
			for deadline := time.Now().Add(limit); versions(k.Ring()) != "1 2"; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Errorf("%s: %v", path, k.Err())
					return
				}
			}
		})
	}
	wg.Wait()
	if len(s.open) != 0 || s.notify != nil {
		t.Errorf("%d open after all were closed", len(s.open))
	}
	for line := range strings.Lines(log.String()) {
		if !strings.Contains(line, "level=INFO") {
			t.Error(line)
		}
	}
}

// A reader that never stops sees, through every way of rotation, always a ring with the key of the
// moment: version 1, which stays, and the newest, from the moment that Refresh was asked.
func TestRotationUnderReaders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.keytab")
	write(t, path, encode(service(1)))
	p := quick
	p.unchanged, p.alarm = limit, limit // the writer below may be stopped halfway on a busy machine
	s, log := newSet(p)
	k := mustOpen(t, s, path)
	var stop atomic.Bool
	var reads atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			// Ticks, since readers that spin would starve the writer.
			tick := time.NewTicker(100 * time.Microsecond)
			defer tick.Stop()
			newest := uint32(0)
			for ; !stop.Load(); <-tick.C {
				r := k.Ring()
				one, last := r.Lookup([]byte(serviceName), 1, 18), r.Lookup([]byte(serviceName), 0, 18)
				if one == nil || last == nil {
					t.Errorf("a ring of %d keys without version 1", r.Len())
					return
				}
				if !bytes.Equal(last.Key.Secret(), testKey(18, byte(last.KVNO))) {
					t.Error("a key's bytes are wrong")
					return
				}
				if last.KVNO < newest {
					t.Errorf("version %d after %d", last.KVNO, newest)
					return
				}
				newest = last.KVNO
				reads.Add(1)
			}
		})
	}
	records := []written{service(1)}
	for kvno := uint32(2); kvno < 120 && !t.Failed(); kvno++ {
		records = append(records, service(kvno))
		file := encode(records...)
		switch kvno % 5 {
		case 0:
			replace(t, path, file)
		case 1:
			write(t, path, file)
		case 2:
			os.Remove(path)
			write(t, path, file)
		case 3: // half of it, and then all
			write(t, path, file[:len(file)-7])
			time.Sleep(3 * time.Millisecond)
			write(t, path, file)
		case 4: // in many small writes
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			for b := file; len(b) > 0; b = b[min(50, len(b)):] {
				f.Write(b[:min(50, len(b))])
			}
			f.Close()
		}
		want := kvno
		within(t, fmt.Sprintf("version %d; %v", want, k.Err()), func() bool {
			return k.Ring().Lookup([]byte(serviceName), want, 18) != nil
		})
	}
	stop.Store(true)
	wg.Wait()
	if reads.Load() == 0 {
		t.Error("nothing was read")
	}
	if strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("alarm:\n%s", log)
	}
}
