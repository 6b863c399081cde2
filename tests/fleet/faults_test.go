package fleet

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/tests/lab"
)

// What becomes of a fleet when what it stands on breaks. In each test clients come all the time, to all
// hosts, with old and new tickets, and an administrator changes an entry again and again. Whatever
// breaks, no client is refused; what an instance has confirmed stays; and the KDC has as many new keys as
// were asked for.

// long is how long is waited for what takes timeouts, leases and another try.
const long = 6 * time.Minute

// eventually is [lab.Await] for what takes long.
func eventually(t *testing.T, what string, so func() error) {
	t.Helper()
	for deadline := time.Now().Add(long); ; time.Sleep(100 * time.Millisecond) {
		err := so()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// disk puts a small file system of its own at a directory, which this program's user alone may enter.
func disk(t *testing.T, dir, size string) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("not run: the test has no mounts of its own")
	}
	check(t, unix.Mount("none", dir, "tmpfs", 0, "mode=700,size="+size))
	t.Cleanup(func() { check(t, unix.Unmount(dir, unix.MNT_DETACH)) })
}

// fill leaves no room on a disk, and returns what makes room again.
func fill(t *testing.T, dir string) (room func()) {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f, err := os.Create(name)
	check(t, err)
	defer f.Close()
	for chunk := make([]byte, 1<<20); len(chunk) > 0; {
		if _, err := f.Write(chunk); errors.Is(err, syscall.ENOSPC) {
			chunk = chunk[:len(chunk)/2]
		} else {
			check(t, err)
		}
	}
	return func() { check(t, os.Remove(name)) }
}

// faults is a fleet with all that goes on.
type faults struct {
	*fleet
	*traffic
	began int // the version of the key
	asked int // rotations that were begun, or may have been
	done  int // and that were confirmed

	other string // the entry that is changed

	stopping chan struct{}
	writing  sync.WaitGroup
	mu       sync.Mutex
	last     int   // the number that was confirmed last
	maybe    []int // those after it of which it is not known
	confirms int
	refusals map[string]int // by what was said
}

// newFaults is a fleet over three members on a network of their own, each instance on one of its own,
// with traffic.
func newFaults(t *testing.T, place func(*network, int) lab.EtcdPlace) (*faults, *network) {
	t.Helper()
	n, f, c := newNetwork(t), prepare(t), secure(t)
	c.Place = n.place
	if place != nil {
		c.Place = func(i int) lab.EtcdPlace { return place(n, i) }
	}
	f.etcd = c.Start(t)
	lines := map[string]string{}
	for _, instance := range []string{instanceOne, instanceTwo} {
		lines[instance] = etcdConf(t, c, f.etcd, n.urls(instance, f.etcd)...)
	}
	f.backend = func(instance string) string { return lines[instance] }
	f.disks = true
	f.raise()
	return begin(f), n
}

// begin begins what goes on all the time.
func begin(f *fleet) *faults {
	f.t.Helper()
	r := realm(f.t)
	x := &faults{fleet: f, other: "other-" + f.principal, stopping: make(chan struct{}), refusals: map[string]int{}}
	check(f.t, r.RandKey(strings.TrimSuffix(x.other, "@"+lab.Name)))
	path, err := r.Keytab("other.keytab", x.other)
	check(f.t, err)
	f.stores[0].must("import", "--write", "--hosts", "nobody.example.test", path)
	x.began = f.entry(f.stores[0]).KVNO
	x.writing.Go(func() {
		for i := 1; ; i++ {
			select {
			case <-x.stopping:
				return
			case <-time.After(100 * time.Millisecond):
				x.write(i)
			}
		}
	})
	f.t.Cleanup(x.end)
	x.traffic = f.newTraffic()
	x.all("at first")
	return x
}

// never is the interval of the other entry, in minutes, without the number of the change.
const never = 5 * 365 * 24 * 60

// write changes the other entry, through the instances by turns.
func (x *faults) write(i int) {
	out, err := x.stores[i%len(x.stores)].run("policy", x.other, "--interval", fmt.Sprintf("%dm", never+i))
	x.mu.Lock()
	defer x.mu.Unlock()
	if err == nil {
		x.last, x.maybe = i, nil
		x.confirms++
		return
	}
	x.maybe = append(x.maybe, i)
	_, why, _ := strings.Cut(out, "keystored: ")
	x.refusals[strings.TrimSpace(why)]++
}

// end stops what goes on.
func (x *faults) end() {
	select {
	case <-x.stopping:
	default:
		close(x.stopping)
	}
	x.writing.Wait()
	x.traffic.end()
}

// rotate asks an instance for a rotation, and returns what to wait for.
func (x *faults) rotate(s *storeInstance) (done func() error) {
	x.t.Helper()
	x.asked++
	r := realm(x.t)
	p, err := r.Start(r.Command(lab.Root, nil, keystored(x.t), "rotate", x.principal, "-c", s.conf), r.Path("rotate.out"))
	check(x.t, err)
	return func() error {
		x.t.Helper()
		select {
		case <-p.Done():
		case <-time.After(long):
			x.t.Fatalf("keystored rotate does not end:\n%s", p.Output())
		}
		if p.Cmd.ProcessState.Success() {
			x.done++
			return nil
		}
		return fmt.Errorf("%v\n%s", p.Cmd.ProcessState, p.Output())
	}
}

// begun waits until an instance has a rotation to show, or it is over.
func (x *faults) begun(s *storeInstance, before int) listed {
	x.t.Helper()
	var e listed
	eventually(x.t, "a rotation", func() (err error) {
		if e, err = x.ask(s); err == nil && e.Rotation == "" && e.KVNO == before {
			err = errors.New("has not begun")
		}
		return err
	})
	return e
}

// during has something broken, sees that everybody is served meanwhile, and what is made of meanwhile. It
// mends it, and sees that all goes on and nothing was lost.
func (x *faults) during(what string, meanwhile, mend func()) {
	x.t.Helper()
	start, before := time.Now(), x.served()
	x.mu.Lock()
	confirms := x.confirms
	x.refusals = map[string]int{}
	x.mu.Unlock()
	x.all("while " + what)
	meanwhile()
	x.all("while " + what + ", at the end")
	broken, served := time.Since(start), x.served()
	for i := range served {
		served[i] -= before[i]
	}
	x.mu.Lock()
	confirmed := x.confirms - confirms
	x.mu.Unlock()
	told := x.told()
	mend()
	x.settle()
	x.client() // whose ticket is made with the newest key
	x.all("after " + what)
	x.traffic.mu.Lock()
	failed := len(x.failed)
	x.traffic.mu.Unlock()
	x.t.Logf("%s, for %v: clients saw %d accepts, %d tickets renewed, %d with new tickets, %d logins, and %d failures until it was over. "+
		"%d changes of an administrator were confirmed; otherwise he was told: %q", what, broken.Round(time.Second), served[0], served[1], served[2], served[3], failed, confirmed, told)
}

// served is how many accepts, renewals, accepts of new tickets and logins there were.
func (x *faults) served() (sums [4]int64) {
	for _, c := range x.clients {
		for i, n := range c {
			if i < len(x.hosts) {
				sums[0] += n.Load()
			} else {
				sums[1] += n.Load()
			}
		}
	}
	sums[2] = x.fresh.Load()
	for _, n := range x.inits {
		sums[3] += n.Load()
	}
	return sums
}

// told is what refusals of changes said since something was broken last.
func (x *faults) told() (list []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for text, n := range x.refusals {
		list = append(list, fmt.Sprintf("%dx %s", n, text))
	}
	slices.Sort(list)
	return list
}

// settle waits until all instances say the same, nothing is left to do, and changes are confirmed by each;
// nothing that was confirmed is lost, and the KDC has as many new keys as were asked for.
func (x *faults) settle() {
	x.t.Helper()
	for _, s := range x.stores {
		eventually(x.t, "a rotation is not finished", func() error {
			e, err := x.ask(s)
			if err == nil && (e.Rotation != "" || e.Alarm != "") {
				err = fmt.Errorf("%+v", e)
			}
			return err
		})
	}
	x.mu.Lock()
	confirms := x.confirms
	x.mu.Unlock()
	eventually(x.t, "no changes are confirmed", func() error {
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.confirms < confirms+2*len(x.stores) || len(x.maybe) > 0 {
			return fmt.Errorf("%d, and it is not known of %d", x.confirms-confirms, len(x.maybe))
		}
		return nil
	})
	now := x.keys()
	for _, s := range x.stores {
		if e := x.entry(s); e.KVNO != now {
			x.t.Errorf("the KDC has kvno %d, %+v", now, e)
		}
	}
	if now < x.began+x.done || now > x.began+x.asked {
		x.t.Errorf("the KDC has kvno %d, at first %d; %d rotations were asked for, %d confirmed", now, x.began, x.asked, x.done)
	}
}

// kept stops all, and looks at what is there of the other entry.
func (x *faults) kept() {
	x.t.Helper()
	x.end()
	for _, s := range x.stores {
		var shown struct{ Interval int }
		s.json(&shown, "show", x.other)
		if got := shown.Interval/60 - never; got != x.last && !slices.Contains(x.maybe, got) {
			x.t.Errorf("change %d is there; %d was confirmed last, of %d it is not known", got, x.last, x.maybe)
		}
	}
	e := x.entry(x.stores[0])
	if now := x.keys(); e.KVNO != now || now < x.began+x.done || now > x.began+x.asked {
		x.t.Errorf("%+v, at the KDC %d, at first %d; %d rotations were asked for, %d confirmed", e, now, x.began, x.asked, x.done)
	}
	x.t.Logf("%d changes confirmed; kvno %d after %d rotations asked for, %d confirmed", x.confirms, e.KVNO, x.asked, x.done)
}

// leader is the member that leads.
func (x *faults) leader() (i int) {
	x.t.Helper()
	eventually(x.t, "nobody leads", func() error {
		for i = range x.etcd {
			if x.etcd[i].Leads(x.t.Context()) {
				return nil
			}
		}
		return errors.New("no member does")
	})
	return i
}

// rotates has a rotation confirmed, by an instance that can.
func (x *faults) rotates(s *storeInstance) {
	x.t.Helper()
	if err := x.rotate(s)(); err != nil {
		x.t.Errorf("while something else is broken: %v", err)
	}
}

// TestNightlyLeaderKilled: the member that leads is killed in the middle of a rotation.
func TestNightlyLeaderKilled(t *testing.T) {
	lab.Nightly(t)
	x, _ := newFaults(t, nil)
	for range 3 {
		before := x.entry(x.stores[1]).KVNO
		i := x.leader()
		done := x.rotate(x.stores[0])
		step := x.begun(x.stores[1], before).Rotation
		x.etcd[i].Kill()
		x.during(fmt.Sprintf("the leader was killed at the step %q", step), func() {
			if err := done(); err != nil {
				t.Logf("who had asked for the rotation was told: %v", err)
			}
		}, func() { check(t, x.etcd[i].Start()); check(t, x.etcd[i].Await()) })
	}
	x.kept()
}

// TestNightlyMemberPaused: the member that leads does nothing for a while, and wakes up as if nothing had
// been.
func TestNightlyMemberPaused(t *testing.T) {
	lab.Nightly(t)
	x, _ := newFaults(t, nil)
	i := x.leader()
	check(t, x.etcd[i].Cmd.Process.Signal(syscall.SIGSTOP))
	x.during("the leader was paused", func() {
		eventually(t, "the others do not rotate", func() error { return x.rotate(x.stores[0])() })
	}, func() { check(t, x.etcd[i].Cmd.Process.Signal(syscall.SIGCONT)) })
	x.rotates(x.stores[1])
	x.settle()
	x.kept()
}

// TestNightlyInstanceCut: an instance has no way to etcd. The other one does all.
func TestNightlyInstanceCut(t *testing.T) {
	lab.Nightly(t)
	x, n := newFaults(t, nil)
	done := x.rotate(x.stores[0])
	n.cut(instanceOne, 0, 1, 2)
	x.during("an instance was cut off from etcd", func() {
		if err := done(); err != nil {
			t.Logf("who had asked it for a rotation was told: %v", err)
		}
		x.rotates(x.stores[1])
		eventually(t, "it is in touch still", func() error { // until hosts that ask it are sent away
			if n := strings.Count(x.stores[0].Output(), "the other instances are not told that this one lives"); n < 4 {
				return fmt.Errorf("it could not tell of itself %d times", n)
			}
			return nil
		})
		x.rotates(x.stores[1])
	}, func() { n.mend(instanceOne, 0, 1, 2) })
	// Until it has told of itself again it says that it is out of touch.
	eventually(t, "it does not rotate again", func() error { return x.rotate(x.stores[0])() })
	x.settle()
	x.kept()
}

// TestNightlyMembersCut: the member that leads does not reach the others, and clients reach all.
// Then none reaches another.
func TestNightlyMembersCut(t *testing.T) {
	lab.Nightly(t)
	x, n := newFaults(t, nil)
	i := x.leader()
	n.cut(members, i)
	x.during("the leader was cut off from the other members", func() {
		eventually(t, "the others do not rotate", func() error { return x.rotate(x.stores[1])() })
	}, func() { n.mend(members, i) })
	done := x.rotate(x.stores[0])
	n.cut(members, 0, 1, 2)
	x.during("all members were cut off from each other", func() {
		if err := done(); err == nil {
			t.Log("the rotation was over before")
		} else {
			t.Logf("who had asked for a rotation was told: %v", err)
		}
	}, func() { n.mend(members, 0, 1, 2) })
	x.rotates(x.stores[1])
	x.settle()
	x.kept()
}

// TestNightlyMemberDiskFull: the disk of the member that leads is full.
func TestNightlyMemberDiskFull(t *testing.T) {
	lab.Nightly(t)
	dirs := map[int]string{}
	x, _ := newFaults(t, func(n *network, i int) lab.EtcdPlace {
		p := n.place(i)
		if dirs[i] == "" {
			dirs[i] = t.TempDir()
			disk(t, dirs[i], "256m")
		}
		p.Data = dirs[i] + "/data"
		return p
	})
	i := x.leader()
	room := fill(t, dirs[i])
	x.during("the leader's disk was full", func() {
		// What makes its database grow.
		for k := range 40 {
			x.etcd[(i+1)%3].Ctl(t.Context(), "put", fmt.Sprintf("/elsewhere/%d", k), strings.Repeat("x", 100<<10))
		}
		eventually(t, "no rotation", func() error { return x.rotate(x.stores[0])() })
		t.Logf("the member has ended: %v", x.etcd[i].Err() != nil)
	}, func() {
		room()
		if x.etcd[i].Err() != nil {
			check(t, x.etcd[i].Start())
		}
		check(t, x.etcd[i].Await())
	})
	x.rotates(x.stores[1])
	x.settle()
	x.kept()
}

// TestNightlyStateDiskFull: an instance cannot write what it has seen. It confirms nothing then, and the
// other one goes on.
func TestNightlyStateDiskFull(t *testing.T) {
	lab.Nightly(t)
	x, _ := newFaults(t, nil)
	room := fill(t, x.stores[0].dir+"/state")
	x.during("an instance's disk was full", func() {
		err := x.rotate(x.stores[0])()
		t.Logf("who asked it for a rotation was told: %v", err)
		x.rotates(x.stores[1])
		eventually(t, "nobody is told that the disk is full", func() error { // the file has room in its last page
			if !slices.ContainsFunc(x.told(), func(s string) bool { return strings.Contains(s, "no space left on device") }) {
				return fmt.Errorf("he is told %q", x.told())
			}
			return nil
		})
		x.rotates(x.stores[1])
	}, room)
	x.rotates(x.stores[0])
	x.settle()
	x.kept()
}

// TestNightlyBoltDiskFull: the disk of a store that is a file is full. It is read still; nothing is
// confirmed that is not there.
func TestNightlyBoltDiskFull(t *testing.T) {
	lab.Nightly(t)
	f := prepare(t)
	dir := realm(t).Path("bolt")
	check(t, os.Mkdir(dir, 0o700))
	disk(t, dir, "4m")
	f.backend = func(string) string { return "backend = bolt:" + dir + "/store.db\n" }
	one := f.newInstance("one", "")
	one.start()
	f.populate()
	x := begin(f)
	for n := range 3 {
		room := fill(t, dir)
		x.during("the store's disk was full", func() {
			err := x.rotate(one)()
			t.Logf("who asked for a rotation was told: %v", err)
			if n > 0 {
				return // the file has room in itself
			}
			lab.Await(t, "nobody was told that the disk is full", func() bool {
				return slices.ContainsFunc(x.told(), func(s string) bool { return strings.Contains(s, "no space left on device") })
			})
		}, func() {
			one.Kill()
			room()
			one.start()
		})
		x.rotates(one)
	}
	x.settle()
	x.kept()
}

// TestNightlyStoreDown: no member and no instance is there, for longer than anything waits, and a host
// starts anew meanwhile.
func TestNightlyStoreDown(t *testing.T) {
	lab.Nightly(t)
	x, _ := newFaults(t, nil)
	for _, e := range x.etcd {
		e.Kill()
	}
	x.during("there was no etcd", func() {
		for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); {
			x.all("while there is no etcd")
		}
		x.lost(x.hosts[0])
	}, func() {
		for _, e := range x.etcd {
			check(t, e.Start())
		}
		for _, e := range x.etcd {
			check(t, e.Await())
		}
	})
	x.rotates(x.stores[0])
	x.settle()
	x.end()
	for _, s := range x.stores {
		check(t, s.Stop())
	}
	x.down()
	for _, s := range x.stores {
		s.start()
	}
	x.kept()
}

// gate stands between an instance and its kadmind, and holds one connection.
type gate struct {
	address string
	arrived chan struct{} // closed when that is there
	open    chan struct{} // closed to let it go on
}

func newGate(t *testing.T, server string, number int) *gate {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	g := &gate{l.Addr().String(), make(chan struct{}), make(chan struct{})}
	var conns sync.WaitGroup
	pass := func(c net.Conn, hold bool) {
		defer c.Close()
		if hold {
			close(g.arrived)
			<-g.open
		}
		s, err := net.Dial("tcp4", server)
		if err != nil {
			return
		}
		defer s.Close()
		var there sync.WaitGroup
		there.Go(func() { io.Copy(s, c); s.(*net.TCPConn).CloseWrite() })
		io.Copy(c, s)
		c.Close()
		there.Wait()
	}
	conns.Go(func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { pass(c, n == number) })
		}
	})
	t.Cleanup(func() { l.Close(); conns.Wait() })
	return g
}

// TestNightlyStaleWriter: an instance is paused when it has the lock and is about to write, or has
// written that it asks the KDC and is about to. Another one takes the rotation over and finishes it. The
// first one wakes up: it writes nothing, and the KDC is asked once.
func TestNightlyStaleWriter(t *testing.T) {
	lab.Nightly(t)
	for number, point := range []string{"before it writes that there is a rotation", "before it asks the KDC"} {
		t.Run(strings.ReplaceAll(point, " ", "-"), func(t *testing.T) {
			f := prepare(t)
			g := newGate(t, f.kadmind.Kadmin, number)
			conf, err := f.kadmind.Via(g.address, f.kadmind.Kpasswd)
			check(t, err)
			c := secure(t)
			f.etcd = c.Start(t)
			lines := etcdConf(t, c, f.etcd)
			f.backend = func(string) string { return lines }
			f.krb5 = map[string]string{"one": conf}
			f.raise()
			x := begin(f)
			one, two := f.stores[0], f.stores[1]
			revision := func(s *storeInstance) (n int) {
				var shown struct{ Revision int }
				s.json(&shown, "show", f.principal)
				return shown.Revision
			}
			before := x.began
			done := x.rotate(one)
			<-g.arrived
			check(t, one.Cmd.Process.Signal(syscall.SIGSTOP))
			var finished int
			x.during("an instance was paused "+point, func() {
				if e := x.entry(two); e.KVNO != before || (e.Rotation == "sent") != (number == 1) {
					t.Errorf("it was paused elsewhere: %+v", e)
				}
				if number == 0 {
					if err := x.rotate(two)(); err != nil {
						t.Error(err)
					}
					x.asked-- // it is the same one
				}
				eventually(t, "the other one does not finish", func() error {
					e, err := x.ask(two)
					if err == nil && (e.Rotation != "" || e.KVNO != before+1) {
						err = fmt.Errorf("%+v", e)
					}
					return err
				})
				finished = revision(two)
			}, func() {
				check(t, one.Cmd.Process.Signal(syscall.SIGCONT))
				close(g.open)
				if err := done(); err != nil {
					t.Logf("who had asked it was told: %v", err)
				} else if number == 0 {
					x.done-- // it is the same one
				}
			})
			if now := revision(one); now != finished {
				t.Errorf("revision %d, and the other one had finished at %d", now, finished)
			}
			x.rotates(one)
			x.settle()
			if e := x.entry(two); e.KVNO != before+2 {
				t.Errorf("%+v, at first kvno %d", e, before)
			}
			x.kept()
		})
	}
}
