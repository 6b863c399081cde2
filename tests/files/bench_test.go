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

// TestNightlyUndisturbed: who asks over the socket waits no longer while twenty users hammer files than
// while as many hammer the socket.
func TestNightlyUndisturbed(t *testing.T) {
	lab.Nightly(t)
	binary := filepath.Join(t.TempDir(), "gssproxyd")
	check(t, lab.Build(binary, false))
	m := newMount(t, "[service/any]\n  mechs = krb5\n  euid = 0\n  allow_any_uid = yes\n  group = 3000\n  cred_store = keytab:SERVICES\n  cred_usage = accept\n", func(o *lab.Options) {
		o.Binary, o.Quiet = binary, true
		o.Config = strings.Replace(o.Config, "  debug_level = 1\n", "", 1)
	})
	path := m.program(t, "does")
	p99 := func(what string) time.Duration {
		var all []*exec.Cmd
		said := make([]bytes.Buffer, 20)
		for i := range uint32(20) {
			cmd := exec.CommandContext(t.Context(), path, m.dir, m.Socket, strconv.Itoa(1<<30))
			cmd.Env = []string{does + "=" + what}
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: 3000 + i, Gid: 3000}}
			cmd.Stdout = &said[i]
			check(t, cmd.Start()) // without an input that would have it wait
			all = append(all, cmd)
		}
		defer func() {
			for i, cmd := range all {
				cmd.Process.Kill()
				if cmd.Wait(); said[i].String() != "ready\n" {
					t.Errorf("user %d does not hammer: %s", i, &said[i])
				}
			}
		}()
		one := exec.CommandContext(t.Context(), path, m.dir, m.Socket, "5000")
		one.Env = []string{does + "=names/socket-held"}
		one.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: 2999, Gid: 3000}}
		out, err := one.CombinedOutput() // ready, all, and the 99th percentile
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		lines := strings.Fields(string(out))
		ns, err := strconv.ParseInt(lines[2], 10, 64)
		check(t, err)
		return time.Duration(ns)
	}
	p99("names/held") // everything is warm
	socket, files, held := time.Hour, time.Hour, time.Hour
	for range 5 { // by turns, and what else the machine does counts least in the best of each
		socket, files, held = min(socket, p99("names/socket-connect")), min(files, p99("names/four-calls")), min(held, p99("names/held"))
	}
	t.Logf("the 99th percentile of a client of the socket: %v beside as many of the socket, %v beside files, %v beside held files", socket, files, held)
	if limit := socket * 3 / 2; files > limit || held > limit {
		t.Errorf("more than half as much again")
	}
}
