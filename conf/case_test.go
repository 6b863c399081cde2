package conf

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"gssproxyd/tests/lab"
)

var update = flag.Bool("update", false, "rewrite the expected results of testdata/cases")

// testUsers are the users of the cases; the first two are also on any Debian system, for the C
// daemon.
var testUsers = FixedUsers{"root": 0, "www-data": 33, "3proxy": 333, "alice": 1000}

// A case is an archive: what it shows, the files main.conf and d/*, and
//
//	-- c --       what the C daemon does: "starts" with the names of its
//	              services, or "refuses"; "-" if it is not to be asked
//	-- strict --  what Load makes of it
//	-- compat --  the same with Compat
//
// $DIR in the files stands for the directory they are in.
func TestCases(t *testing.T) {
	files, err := filepath.Glob("testdata/cases/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			ar, dir := unpack(t, name)
			for _, compat := range []bool{false, true} {
				section := map[bool]string{false: "strict", true: "compat"}[compat]
				got := strings.ReplaceAll(loadText(dir, compat), dir+"/", "")
				f := member(ar, section)
				if *update {
					f.Data = []byte(got)
				} else if diff := cmp.Diff(string(f.Data), got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", section, diff)
				}
			}
			if *update {
				if err := os.WriteFile(name, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestCasesInC asks the C daemon itself what the cases say about it.
func TestCasesInC(t *testing.T) {
	lab.Require(t)
	files, _ := filepath.Glob("testdata/cases/*.txtar")
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			t.Parallel()
			ar, dir := unpack(t, name)
			want := strings.TrimSpace(string(member(ar, "c").Data))
			if want == "-" {
				t.Skip("the case says not to ask C")
			}
			if got := startC(t, dir); got != want {
				t.Errorf("C %s; the case says %s", got, want)
			}
		})
	}
}

func unpack(t *testing.T, name string) (*txtar.Archive, string) {
	t.Helper()
	ar, err := txtar.ParseFile(name)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range ar.Files {
		if f.Name == "main.conf" || strings.HasPrefix(f.Name, "d/") {
			data := bytes.ReplaceAll(f.Data, []byte("$DIR"), []byte(dir))
			if err := os.WriteFile(filepath.Join(dir, f.Name), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return ar, dir
}

func member(ar *txtar.Archive, name string) *txtar.File {
	for i := range ar.Files {
		if ar.Files[i].Name == name {
			return &ar.Files[i]
		}
	}
	ar.Files = append(ar.Files, txtar.File{Name: name})
	return &ar.Files[len(ar.Files)-1]
}

// loadText loads the case in dir and writes down the outcome: problems, then every option that a
// file sets, with its effective value and its origin.
func loadText(dir string, compat bool) string {
	c, err := Load(Source{File: dir + "/main.conf", Dir: dir + "/d", Compat: compat, Users: testUsers, DefaultSocket: dir + "/default.sock"})
	var b strings.Builder
	if err != nil {
		errs := err.(*Errors)
		for _, p := range errs.Problems {
			fmt.Fprintln(&b, "error:", p)
		}
		for _, w := range errs.Read.Warnings {
			fmt.Fprintln(&b, "warning:", w)
		}
		return b.String()
	}
	for _, w := range c.Warnings {
		fmt.Fprintln(&b, "warning:", w)
	}
	set := func(section string, t target, from origins) {
		for i := range Options {
			o := &Options[i]
			if at := from[o.Key]; o.Section == section && len(at) > 0 {
				values := o.get(t)
				if len(values) == 0 {
					values = []string{"nothing"}
				}
				for j, v := range values {
					fmt.Fprintf(&b, "  %s = %s (%s)\n", o.Key, v, at[j])
				}
			}
		}
	}
	fmt.Fprintln(&b, "gssproxy")
	set(DaemonSection, target{cfg: c}, c.from)
	for _, s := range c.KeyStores {
		fmt.Fprintf(&b, "store %q (%s)\n", s.Name, s.Where)
		set(StoreSection, target{cfg: c, store: s}, s.from)
	}
	for _, s := range c.Services {
		fmt.Fprintf(&b, "service %q (%s)\n", s.Name, s.Where)
		set(ServiceSection, target{cfg: c, svc: s}, s.from)
	}
	return b.String()
}

// startC starts the C daemon on the case in dir until it is ready or has ended.
func startC(t *testing.T, dir string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/usr/sbin/gssproxy", "-i", "-c", dir+"/main.conf", "-C", dir+"/d", "-s", dir+"/default.sock", "--debug-level=2")
	cmd.Dir = dir
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watch := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer watch.Stop()
	outcome := []string{"starts"}
	ready := false
	var log strings.Builder
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		line := lines.Text()
		fmt.Fprintln(&log, line)
		if _, rest, ok := strings.Cut(line, "Service: "); ok {
			name, _, _ := strings.Cut(rest, ", Enckey")
			outcome = append(outcome, name)
		}
		if strings.Contains(line, "Initialization complete.") {
			ready = true
			cmd.Process.Signal(os.Interrupt)
		}
	}
	err = cmd.Wait()
	t.Logf("C ended with %v after:\n%s", err, log.String())
	if !ready {
		return "refuses"
	}
	return strings.Join(outcome, " ")
}
