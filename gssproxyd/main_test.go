package main

import (
	"io"
	"net"
	"os"
	"regexp"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	unix.Umask(0o022) // directories that a group can write are others' too
	testscript.Main(m, map[string]func(){"gssproxyd": main})
}

// TestScripts runs the command line as the files in testdata/script say.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", Setup: func(e *testscript.Env) error {
		e.Setenv("KRB5_CONFIG", "/dev/null") // not the host's
		e.Setenv("GSSPROXYD_PID_FILE", e.WorkDir+"/pid")
		return nil
	}, Cmds: map[string]func(*testscript.TestScript, bool, []string){"nonsense": nonsense}})
}

// nonsense sends a record without a call to a socket, and waits until it is closed.
func nonsense(ts *testscript.TestScript, _ bool, args []string) {
	c, err := net.Dial("unix", ts.MkAbs(args[0]))
	ts.Check(err)
	defer c.Close()
	_, err = c.Write([]byte("\x80\x00\x00\x04none"))
	ts.Check(err)
	_, err = io.ReadAll(c)
	ts.Check(err)
}

// TestManualNamesEveryOption holds docs/gssproxyd.8 against the options that the program has: each
// is described, and nothing is described that is not there.
func TestManualNamesEveryOption(t *testing.T) {
	page, err := os.ReadFile("../docs/gssproxyd.8")
	if err != nil {
		t.Fatal(err)
	}
	described := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\.It Fl .*?(?:, )?Fl -([a-z-]+)|^\.It Fl -([a-z-]+)`).FindAllStringSubmatch(string(page), -1) {
		described[m[1]+m[2]] = true
	}
	has := map[string]bool{}
	root := rootCommand(new(options))
	root.InitDefaultVersionFlag()
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		for _, set := range []*pflag.FlagSet{c.Flags(), c.PersistentFlags()} {
			set.VisitAll(func(f *pflag.Flag) { has[f.Name] = has[f.Name] || !f.Hidden })
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(root)
	for name, shown := range has {
		if shown && !described[name] {
			t.Errorf("option --%s is not described in docs/gssproxyd.8", name)
		}
	}
	for name := range described {
		if !has[name] {
			t.Errorf("docs/gssproxyd.8 describes --%s, which the program does not have", name)
		}
	}
}
