package lab

import (
	"cmp"
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"
)

// denied are what a container may refuse to a test though everything is installed in it, and why.
var denied = map[string]string{
	"mount(2)":   "a container may lack CAP_SYS_ADMIN",
	"keyctl(2)":  "a container's filter of system calls may leave it out",
	"KCM server": "it needs a /run of its own, and so mount(2)",
}

// Lacking skips the test for want of something, and says why it is not there. With CI=true that is a failure, unless what
// is a thing that a container may be denied ("mount(2)", "keyctl(2)", "KCM server"), and err says that it was.
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
