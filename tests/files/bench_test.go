package files

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gssproxyd/interposer"
	"gssproxyd/mech"
	"gssproxyd/tests/lab"
)

// does has this program, run as a user, do something as often as it is told to.
const does = "GSSPROXYD_TEST_DOES"

func init() {
	if what := os.Getenv(does); what != "" {
		if err := do(what, os.Args[1], os.Args[2], os.Args[3]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// ways are what is measured: the name of an operation of a file system's, or the socket.
var ways = map[string]func(dir, socket, context string) (func() error, error){
	"names/four-calls": func(dir, _, _ string) (func() error, error) { return fourCalls(dir, "names", alice) },
	"names/held":       func(dir, _, _ string) (func() error, error) { return held(dir, "names", alice) },
	"names/socket-held": func(_, socket, _ string) (func() error, error) {
		c := interposer.New(socket, interposer.Options{})
		return func() error { return names(c) }, nil
	},
	"names/socket-connect": func(_, socket, _ string) (func() error, error) {
		return func() error {
			c := interposer.New(socket, interposer.Options{})
			defer c.Close()
			return names(c)
		}, nil
	},
	"wrap/four-calls": func(dir, _, context string) (func() error, error) { return fourCalls(dir, "wrap", wrapped(context)) },
	"wrap/held":       func(dir, _, context string) (func() error, error) { return held(dir, "wrap", wrapped(context)) },
	"status": func(dir, _, _ string) (func() error, error) {
		return func() error { _, err := os.ReadFile(filepath.Join(dir, "modules/krb5/status")); return err }, nil
	},
}

var alice = []byte(`{"name":"alice@` + lab.Name + `"}`)

func wrapped(context string) []byte {
	return fmt.Appendf(nil, `{"context":"%s","message":"%s"}`, context, base64.StdEncoding.EncodeToString(make([]byte, 1024)))
}

// names is what names asks for: two calls.
func names(c *interposer.Client) error {
	n, err := c.ImportName(context.Background(), interposer.Principal("alice@"+lab.Name), mech.KRB5)
	if err == nil {
		_, err = c.LocalName(context.Background(), n, mech.KRB5)
	}
	return err
}

func open(dir, operation string) (int, error) {
	return syscall.Open(filepath.Join(dir, "modules/krb5/operations", operation, "transact"), syscall.O_RDWR|syscall.O_CLOEXEC, 0)
}

// ask writes and reads.
func ask(fd int, question, answer []byte) ([]byte, error) {
	if _, err := syscall.Write(fd, question); err != nil {
		return nil, err
	}
	n, err := syscall.Read(fd, answer)
	return answer[:max(n, 0)], err
}

func fourCalls(dir, operation string, question []byte) (func() error, error) {
	answer := make([]byte, 8<<10)
	return func() error {
		fd, err := open(dir, operation)
		if err == nil {
			_, err = ask(fd, question, answer)
			syscall.Close(fd)
		}
		return err
	}, nil
}

func held(dir, operation string, question []byte) (func() error, error) {
	answer := make([]byte, 8<<10)
	fd, err := open(dir, operation)
	return func() error { _, err := ask(fd, question, answer); return err }, err
}

// established makes a context and returns its id.
func established(dir string) (string, error) {
	var state struct {
		Token       []byte
		Established bool
		Context     string
	}
	question := fmt.Appendf(nil, `{"target":"HTTP@%s","flags":["conf","integ"]}`, lab.Host)
	fd, err := open(dir, "init")
	if err != nil {
		return "", err
	}
	b, err := ask(fd, question, make([]byte, 64<<10))
	if err == nil {
		err = json.Unmarshal(b, &state)
	}
	if err == nil && !state.Established {
		err = errors.New("the context is not established")
	}
	return state.Context, err
}

func do(what, dir, socket, n string) error {
	if a, ok := acts[what]; ok {
		return a.do(dir, socket, n)
	}
	times, err := strconv.Atoi(n)
	if err != nil {
		return err
	}
	id := ""
	if strings.HasPrefix(what, "wrap") {
		if id, err = established(dir); err != nil {
			return err
		}
	}
	f, err := ways[what](dir, socket, id)
	if err == nil {
		err = f()
	}
	if err != nil {
		return err
	}
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
	begin := time.Now()
	took := make([]time.Duration, 0, min(times, 1<<16))
	for range times {
		one := time.Now()
		if err := f(); err != nil {
			return err
		}
		if len(took) < cap(took) {
			took = append(took, time.Since(one))
		}
	}
	fmt.Println(time.Since(begin).Nanoseconds())
	slices.Sort(took)
	fmt.Println(took[len(took)*99/100].Nanoseconds())
	return nil
}

// BenchmarkWays: what one question costs its caller and the daemon, as a file and over the socket. The
// daemon is one without the race detector.
func BenchmarkWays(b *testing.B) {
	binary := filepath.Join(b.TempDir(), "gssproxyd")
	check(b, lab.Build(binary, false))
	m := newMount(b, "", func(o *lab.Options) {
		o.Binary, o.Quiet = binary, true
		o.Config = strings.Replace(o.Config, "  debug_level = 1\n", "", 1)
	})
	path := m.program(b, "does")
	for _, what := range []string{"names/four-calls", "names/held", "names/socket-connect", "names/socket-held", "wrap/four-calls", "wrap/held", "status"} {
		b.Run(what, func(b *testing.B) {
			cmd := exec.CommandContext(b.Context(), path, m.dir, m.Socket, strconv.Itoa(b.N))
			cmd.Env = []string{does + "=" + what, "KRB5_CONFIG=" + m.Conf}
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: both.UID, Gid: both.GID}}
			in, err := cmd.StdinPipe()
			check(b, err)
			pipe, err := cmd.StdoutPipe()
			check(b, err)
			var wrong bytes.Buffer
			cmd.Stderr = &wrong
			check(b, cmd.Start())
			out := bufio.NewReader(pipe)
			if line, err := out.ReadString('\n'); line != "ready\n" {
				b.Fatal(line, err, &wrong)
			}
			before, err := m.CPU()
			check(b, err)
			in.Write([]byte("\n"))
			line, err := out.ReadString('\n')
			check(b, err)
			after, err := m.CPU()
			check(b, err)
			ns, err := strconv.ParseFloat(strings.TrimSpace(line), 64)
			check(b, err)
			check(b, cmd.Wait())
			b.ReportMetric(ns/1e3/float64(b.N), "µs/op")
			b.ReportMetric(float64((after-before).Microseconds())/float64(b.N), "daemon-µs/op")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// An act is what a process of TestNightlyUndisturbed does, so many times a second.
type act struct {
	rate int
	does func(dir, socket string) func() error
}

// ofClients is the act of who is measured. All others are hostile.
const ofClients = "asks"

var acts = map[string]act{
	ofClients: {50, func(_, socket string) func() error {
		c := interposer.New(socket, interposer.Options{})
		return func() error { return names(c) }
	}},
	"leaves executions": {20, func(dir, _ string) func() error {
		n, below := 0, filepath.Join(dir, "modules/krb5/operations/names/execution")
		return func() error {
			n++
			err := os.Mkdir(filepath.Join(below, fmt.Sprintf("%d-%d", os.Getpid(), n)), 0o700)
			if errors.Is(err, syscall.EAGAIN) { // there are too many
				return nil
			}
			return err
		}
	}},
	"walks": {2, func(dir, _ string) func() error {
		return func() error {
			return filepath.WalkDir(dir, func(path string, _ os.DirEntry, _ error) error {
				os.ReadFile(path) // all that it may
				return nil
			})
		}
	}},
	"is killed": {10, func(dir, _ string) func() error {
		asks := "while read -r _ <" + filepath.Join(dir, "modules/krb5/status") + "; do echo; done"
		return func() error {
			cmd := exec.Command("/bin/sh", "-c", asks)
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				return err
			}
			_, err = out.Read(make([]byte, 1)) // it asks again
			cmd.Process.Kill()
			cmd.Wait()
			return err
		}
	}},
}

// Rounds are of time as it passes, so that nobody has to begin or end: four of them are a block. In the
// two in the middle the files are ours, in the others those of a copy of the tree elsewhere.
const roundTime = 3 * time.Second

func round(at time.Time) int64   { return at.UnixNano() / int64(roundTime) }
func filesAreUsed(in int64) bool { return in%4 == 1 || in%4 == 2 }

// do acts until it is killed, and prints of each time when that was and how long it took, in
// nanoseconds. What could not be done when it was due, since the time before took so long, is late.
func (a act) do(dir, socket, elsewhere string) error {
	here, there, every := a.does(dir, socket), a.does(elsewhere, socket), time.Second/time.Duration(a.rate)
	for due := time.Now(); ; due = due.Add(every) {
		does := here
		if !filesAreUsed(round(due)) {
			does = there
		}
		begin := due
		if early := time.Until(due); early > 0 {
			time.Sleep(early)
			begin = time.Now()
		}
		if err := does(); err != nil {
			return err
		}
		fmt.Println(begin.UnixNano(), time.Since(begin).Nanoseconds())
	}
}

// TestNightlyUndisturbed: users who do with files whatever they can have those who ask over the socket
// wait half as long again at most.
//
// It compares 99th percentiles. The same clients ask in all rounds, and everybody so many times a
// second, however fast that is answered: otherwise who waits longer would ask less, and a percentile
// would be of something else. In the other rounds who uses files does the same with a copy of the tree
// of its own on a disk, so that the processors are shared by as many. Rounds of both kinds are in the
// order ABBA, so that what changes slowly is in both alike. Each block has one ratio, of 3,000 questions by 3,000, and the
// median of the ratios counts: what else the machine does in some blocks makes their ratios very high
// or very low, and changes the median little. The lowest percentiles of many rounds would be of
// moments in which nobody was disturbed.
//
// The hostile programs have the lowest priority: how they share the processors with others is for
// the kernel to say, and what the daemon does for them is what is tested.
func TestNightlyUndisturbed(t *testing.T) {
	lab.Nightly(t)
	const clients, users, blocks = 10, 21, 30
	binary := filepath.Join(t.TempDir(), "gssproxyd")
	check(t, lab.Build(binary, false))
	m := newMount(t, "[service/any]\n  mechs = krb5\n  euid = 0\n  allow_any_uid = yes\n  group = 3000\n  cred_store = keytab:SERVICES\n  cred_usage = accept\n", func(o *lab.Options) {
		o.Binary, o.Quiet = binary, true
		o.Config = strings.Replace(o.Config, "  debug_level = 1\n", "", 1)
	})
	path, elsewhere := m.program(t, "does"), t.TempDir()
	check(t, os.Chmod(elsewhere, 0o755))
	check(t, os.Chmod(filepath.Dir(elsewhere), 0o755))
	copied, err := m.sh(t, lab.Root, fmt.Sprintf("for u in $(seq 3000 %d); do mkdir %s/$u; cp -r %s/modules %[2]s/$u 2>/dev/null; chmod 1777 %[2]s/$u/modules/krb5/operations/*/execution; done", 3000+users-1, elsewhere, m.dir))
	if err != nil {
		t.Fatal(err, copied)
	}
	start := func(uid uint32, what, priority string) *output {
		cmd := exec.CommandContext(t.Context(), "nice", "-n", priority, path, m.dir, m.Socket, filepath.Join(elsewhere, strconv.Itoa(int(uid))))
		cmd.Env = []string{does + "=" + what, "GOMAXPROCS=1"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: uid, Gid: 3000}}
		out := new(output)
		cmd.Stdout, cmd.Stderr = out, out
		check(t, cmd.Start())
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		// Where the kernel has each session share the processors as one, priorities count within it only.
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", cmd.Process.Pid), []byte(priority), 0); !errors.Is(err, os.ErrNotExist) {
			check(t, err)
		}
		return out
	}
	said, used := make(map[string][]*output), []string{"leaves executions", "walks", "is killed"}
	for i := range uint32(clients) {
		said[ofClients] = append(said[ofClients], start(2900+i, ofClients, "0"))
	}
	for i := range uint32(users) {
		what := used[i%3]
		said[what] = append(said[what], start(3000+i, what, "19"))
	}
	first := (round(time.Now())/4 + 2) * 4 // the block before has everything warm
	time.Sleep(time.Until(time.Unix(0, (first+4*blocks)*int64(roundTime))) + roundTime)

	var alone, beside [blocks][]time.Duration
	for what, outs := range said {
		n := 0
		for i, out := range outs {
			lines := strings.SplitAfter(out.String(), "\n")
			for _, line := range lines[:len(lines)-1] {
				var at, ns int64
				if _, err := fmt.Sscan(line, &at, &ns); err != nil {
					t.Fatalf("process %d that %s: %s", i, what, out)
				}
				r := round(time.Unix(0, at))
				switch b := (r - first) / 4; {
				case r < first || b >= blocks:
				case what != ofClients && filesAreUsed(r):
					n++
				case what != ofClients:
				case filesAreUsed(r):
					beside[b] = append(beside[b], time.Duration(ns))
				default:
					alone[b] = append(alone[b], time.Duration(ns))
				}
			}
		}
		if per := n / int(2*blocks*roundTime/time.Second); what != ofClients {
			t.Logf("who %s does so %d times a second, all together", what, per)
			if n == 0 {
				t.Errorf("nobody %s", what)
			}
		}
	}
	var ratios []float64
	for b := range blocks {
		if len(alone[b]) == 0 || len(beside[b]) == 0 {
			t.Fatalf("block %d: nobody has asked", b)
		}
		of := func(took []time.Duration, percent int) time.Duration {
			slices.Sort(took)
			return took[len(took)*percent/100]
		}
		ratios = append(ratios, float64(of(beside[b], 99))/float64(of(alone[b], 99)))
		t.Logf("the 99th percentile is %v, and beside files %v: %.2f; the median %v, and %v", of(alone[b], 99), of(beside[b], 99), ratios[b],
			of(alone[b], 50), of(beside[b], 50))
	}
	slices.Sort(ratios)
	t.Logf("ratios: %.2f", ratios)
	if ratio := ratios[blocks/2]; ratio > 1.5 {
		t.Errorf("the median is %.2f: more than half as much again", ratio)
	}
}
