package proc_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gssproxyd/xdr"
)

// KRB5_TRACE shows the steps of an accept and why one was refused, in libkrb5's form, in a file of
// the daemon's own.
func TestTrace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trace")
	t.Setenv("KRB5_TRACE", path)
	for _, keytab := range []string{"server", "wrong"} {
		t.Run(keytab, func(t *testing.T) {
			list := capturesIn(t, "1-accept-6.1")
			serve(t, captures+"keys/"+keytab+".keytab", "", residents(t, list)).ask(t, accepted(list))
		})
	}

	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if !regexp.MustCompile(`^\[\d+\] \d+\.\d{6}: [A-Z].*\n$`).MatchString(line) {
			t.Errorf("not a line of a trace: %q", line)
		}
	}
	rest := string(b)
	for _, want := range []string{
		`AP-REQ with a ticket for nfs/\S+@NFSVM.TEST, kvno \d+, aes256-cts-hmac-sha1-96: decrypted with the key of nfs/\S+@NFSVM.TEST, kvno \d+, in keytab FILE:/.*server.keytab\n`,
		`The ticket is of \S+@NFSVM.TEST, session key aes\S+\n`,
		`Accepted a context as nfs/\S+@NFSVM.TEST, the peer is \S+@NFSVM.TEST; session key aes\S+, subkey aes\S+, acceptor's subkey aes\S+, flags 0x\w+\n`,
		`ACCEPT_SEC_CONTEXT of service nfs-server refused: .* \[bad-integrity\]\n`,
	} {
		at := regexp.MustCompile(want).FindStringIndex(rest)
		if at == nil {
			t.Fatalf("no line %s after what came before in:\n%s", want, b)
		}
		rest = rest[at[1]:]
	}
}

// A trace that cannot be written is said in the log and changes nothing else.
func TestTraceNowhere(t *testing.T) {
	for _, path := range []string{filepath.Join(t.TempDir(), "not", "there"), "/dev/full"} {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Setenv("KRB5_TRACE", path)
			list := capturesIn(t, "1-accept-6.1")
			s := serve(t, captures+"keys/server.keytab", "", residents(t, list))
			for range 2 {
				if r := result(t, s.ask(t, accepted(list))); r.Status.MajorStatus != 0 {
					t.Errorf("major %#x", r.Status.MajorStatus)
				}
			}
			if n := strings.Count(s.log.String(), "KRB5_TRACE: "); n != 1 || !strings.Contains(s.log.String(), path) {
				t.Errorf("%d times in the log:\n%s", n, s.log)
			}
		})
	}
}

// accepted is the first call of a list that the C daemon accepted.
func accepted(list []capture) *capture {
	i := slices.IndexFunc(list, func(c capture) bool { return c.Proc == uint32(xdr.ProcAcceptSecContext) && c.Major == 0 })
	return &list[i]
}
