package lab

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// NameOracle is what MIT's library makes of names.
type NameOracle struct {
	in  io.Writer
	out *bufio.Scanner
}

// MITNames starts the oracle; the test lacks it where it cannot be built.
func MITNames(t testing.TB) *NameOracle {
	t.Helper()
	text, err := fs.ReadFile(sources, "csrc/names.c")
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(t.TempDir(), "names.c")
	if err := os.WriteFile(source, text, 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(BuildC(t, source))
	cmd.Env = []string{"LC_ALL=C"}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	return &NameOracle{in, bufio.NewScanner(out)}
}

// Ask gives one of the commands that csrc/names.c lists, and returns the answer.
func (o *NameOracle) Ask(t interface {
	Fatal(...any)
	Fatalf(string, ...any)
}, cmd string, args ...string) string {
	for _, a := range args {
		if cmd += " " + hex.EncodeToString([]byte(a)); a == "" {
			cmd += "-"
		}
	}
	if _, err := fmt.Fprintln(o.in, cmd); err != nil {
		t.Fatal(err)
	}
	if !o.out.Scan() {
		t.Fatalf("MIT's library ended at %q: %v", cmd, o.out.Err())
	}
	return o.out.Text()
}
