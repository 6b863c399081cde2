package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"gssproxyd/tests/lab"
)

// disk has a file system of its own at a directory of a program, which fill fills and free empties.
type disk struct {
	t    *testing.T
	path string
}

func (p *program) disk(dir string) *disk {
	p.t.Helper()
	d := &disk{p.t, filepath.Join(p.dir, dir)}
	if err := unix.Mount("keystored", d.path, "tmpfs", 0, "mode=0700,size=256k"); err != nil {
		lab.Lacking(p.t, "mount(2)", err)
	}
	p.t.Cleanup(func() { unix.Unmount(d.path, unix.MNT_DETACH) })
	return d
}

func (d *disk) fill() {
	d.t.Helper()
	f, err := os.OpenFile(d.path+"/filler", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	for size := 4096; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
}

func (d *disk) free() {
	d.t.Helper()
	if err := os.Remove(d.path + "/filler"); err != nil {
		d.t.Fatal(err)
	}
}

const someone = "HTTP/a@A"

// audited is a program that serves one entry, with a disk of its own for the audit log.
func audited(t *testing.T, more string) (*program, *disk) {
	t.Helper()
	p := newProgram(t)
	d := p.disk("var/log/keystored")
	conf, err := os.ReadFile(filepath.Join(p.dir, "keystored.conf"))
	if err != nil {
		t.Fatal(err)
	}
	p.write("keystored.conf", string(conf)+more)
	p.write("a.keytab", string(append([]byte{5, 2}, keytabEntry(someone, 1, 18, 1)...)))
	server, log := p.start("serve")
	p.entries(0)
	if out, err := p.command("import", "--write", "a.keytab").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, log)
	}
	t.Cleanup(func() {
		server.Process.Signal(syscall.SIGTERM)
		server.Wait()
	})
	return p, d
}

// policy changes the entry, and returns what is said of it.
func (p *program) policy(i int) string {
	out, _ := p.command("policy", someone, "--hosts", fmt.Sprintf("web%d", i)).CombinedOutput()
	return string(out)
}

// On a full disk no change is stored that has no line in the audit log, with audit_failure = refuse. With
// count it is stored, and counted.
func TestAuditFull(t *testing.T) {
	for _, how := range []string{auditRefuse, auditCount} {
		t.Run(how, func(t *testing.T) {
			p, d := audited(t, "audit_failure = "+how+"\n")
			d.fill()
			said := ""
			changed := uint64(1)                                                    // changes that were made
			for i := 0; i < 100 && !strings.Contains(said, "[audit-failed]"); i++ { // the log's last page has room
				if said = p.policy(i); strings.Contains(said, "policy changed") {
					changed++
				}
			}
			if got := p.entries(1)[0]; got.Revision != changed {
				t.Errorf("revision %d, after %d changes", got.Revision, changed)
			}
			if how == auditRefuse && !strings.Contains(said, "nothing was changed, since the audit log does not have it: ") || how == auditCount && changed != 101 {
				t.Errorf("%d changes, and then %s", changed, said)
			}
			d.free()
			if said = p.policy(1000); !strings.Contains(said, "policy changed") {
				t.Error(said)
			}
			out, err := p.command("audit", "verify", filepath.Join(d.path, "audit.log")).CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			log, err := os.ReadFile(filepath.Join(d.path, "audit.log"))
			if err != nil {
				t.Fatal(err)
			}
			if how == auditCount {
				if !strings.Contains(string(log), `"kind":"lost"`) {
					t.Error("no line says that some are missing")
				}
				return
			}
			// Each change has its line, made before; some have no second one.
			for revision := uint64(1); revision <= changed+1; revision++ {
				if n := strings.Count(string(log), fmt.Sprintf(`"kind":"change-begun","principal":"%s","text":"entry-changed: revision %d by uid %d: `, someone, revision, os.Getuid())); n == 0 {
					t.Errorf("revision %d has no line", revision)
				}
			}
		})
	}
}

// A command that changes the store without an instance shows what it has done, the signer too, before it
// says that the audit log does not have it, and fails then.
func TestAuditFullWithoutInstance(t *testing.T) {
	p := newProgram(t)
	d := p.disk("var/log/keystored")
	out, err := p.command("recovery", "new", filepath.Join(p.dir, "recovery.age")).Output()
	if err != nil {
		t.Fatal(err)
	}
	recipient := strings.TrimSpace(string(out))
	config := func(name, more string) {
		if err := os.Mkdir(filepath.Join(p.dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		p.write("keystored.conf", fmt.Sprintf("[keystored]\nbackend = bolt:%[1]s/other.db\nstate_dir = %[1]s/%[2]s\naudit = %[1]s/var/log/keystored/audit.log\nname = %[2]s\n%[3]s", p.dir, name, more))
	}
	run := func(want string, args ...string) (shown string) {
		t.Helper()
		var stdout, stderr strings.Builder
		cmd := p.command(args...)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		if _, failed := errors.AsType[*exec.ExitError](err); !failed || !strings.Contains(stdout.String(), want) || !strings.Contains(stderr.String(), "keystored: it was done, and the audit log does not have all of it: "+p.dir+"/var/log/keystored/audit.log: ") {
			t.Errorf("%q: %v\n%s\n%s", args, err, stdout.String(), stderr.String())
		}
		return stdout.String()
	}
	config("two", "")
	d.fill()
	signer := run("  signer = ed25519:", "init", "--recovery", recipient)
	_, line, _ := strings.Cut(signer, "\n\n  ")
	config("three", line)
	run("this instance can open the store now", "recovery", "grant", filepath.Join(p.dir, "recovery.age"))
	d.free()
	config("four", line)
	if out, err := p.command("recovery", "grant", filepath.Join(p.dir, "recovery.age")).CombinedOutput(); err != nil || strings.Contains(string(out), "audit log") {
		t.Errorf("%v\n%s", err, out)
	}
}
