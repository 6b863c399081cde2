package lab

import (
	"cmp"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

// denied are what a container may refuse to a test though everything is installed in it, and why.
var denied = map[string]string{
	"mount(2)":    "a container may lack CAP_SYS_ADMIN",
	"keyctl(2)":   "a container's filter of system calls may leave it out",
	"io_uring(7)": "a container's filter of system calls may leave it out",
	"KCM server":  "it needs a /run of its own, and so mount(2)",
}

// BuildC compiles a C program of the test's that calls MIT's libraries, and returns its path. Where
// there is no compiler or there are no headers the test lacks them; a program that does not compile
// fails it.
func BuildC(t testing.TB, source string) string {
	t.Helper()
	for _, f := range compiler {
		if _, err := os.Stat(f.path); err != nil {
			Lacking(t, f.pkg, err)
		}
	}
	// The go command keeps a test's result until a file changes that the test itself has looked at.
	if _, err := os.Stat(source); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "program")
	if text, err := exec.Command("cc", "-o", out, source, "-lgssapi_krb5", "-lkrb5").CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", source, err, text)
	}
	return out
}

// Nightly skips a test whose subject is how long something takes in real time, unless NIGHTLY=1
// says that nothing else uses the machine: otherwise it would fail at times, and say nothing of a
// change. make nightly runs those whose names begin with TestNightly.
func Nightly(t testing.TB) {
	t.Helper()
	if os.Getenv("NIGHTLY") != "1" {
		t.Skip("not run: how long things take is tested by make nightly")
	}
}

// Lacking skips the test for want of something, and says why it is not there. With CI=true that is
// a failure, unless what is a thing that a container may be denied ("mount(2)", "keyctl(2)",
// "io_uring(7)", "KCM server"), and err says that it was.
func Lacking(t testing.TB, what string, err error) {
	t.Helper()
	why := denied[what]
	if os.Getenv("CI") == "true" && (why == "" || !slices.ContainsFunc([]error{
		syscall.EPERM, syscall.EACCES, syscall.ENOSYS,
	}, func(errno error) bool { return errors.Is(err, errno) })) {
		t.Fatalf("no %s: %v", what, err)
	}
	t.Skipf("not run: no %s: %v; %s", what, err, cmp.Or(why, "run tests/install-deps"))
}
