package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gssproxyd/keystore/api"
)

// program is this binary, which TestMain takes for keystored when it is called so.
type program struct {
	t    *testing.T
	dir  string
	path string
}

func newProgram(t *testing.T) *program {
	t.Helper()
	p := &program{t: t, dir: t.TempDir()}
	p.path = filepath.Join(p.dir, "keystored")
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, p.path)
	}
	for _, dir := range []string{"var/lib/keystored", "var/log/keystored", "run/keystored"} {
		if err == nil {
			err = os.MkdirAll(filepath.Join(p.dir, dir), 0o700)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	p.write("keystored.conf", fmt.Sprintf("[keystored]\nbackend = bolt:%[1]s/var/lib/keystored/store.db\nstate_dir = %[1]s/var/lib/keystored\n"+
		"socket = %[1]s/run/keystored/socket\naudit = %[1]s/var/log/keystored/audit.log\nname = one\n", p.dir))
	out, err := p.command("init", "--without-recovery", "--json").Output()
	var made created
	if err == nil {
		err = json.Unmarshal(out, &made)
	}
	if err != nil {
		t.Fatal(err)
	}
	conf, _ := os.ReadFile(filepath.Join(p.dir, "keystored.conf"))
	p.write("keystored.conf", string(conf)+"signer = "+made.Signer+"\n")
	return p
}

func (p *program) write(name, text string) {
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *program) command(args ...string) *exec.Cmd {
	cmd := exec.Command(p.path, append(args, "-c", filepath.Join(p.dir, "keystored.conf"))...)
	cmd.Dir = p.dir
	return cmd
}

// start starts a command, which ends with the test.
func (p *program) start(args ...string) (*exec.Cmd, *bytes.Buffer) {
	p.t.Helper()
	cmd := p.command(args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd, &out
}

// entries returns how many entries there are, once a running instance says so.
func (p *program) entries(least int) []api.Summary {
	p.t.Helper()
	c := api.NewClient(filepath.Join(p.dir, "run/keystored/socket"))
	defer c.Close()
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		var list api.EntriesShown
		ctx, cancel := context.WithTimeout(p.t.Context(), 10*time.Second)
		err = c.Call(ctx, "list", &api.Nothing{}, &list, nil)
		cancel()
		if err == nil && len(list.Entries) >= least {
			return list.Entries
		}
	}
	p.t.Fatalf("there are never %d entries: %v", least, err)
	return nil
}

// 500 entries of 40 files, with wrong, empty, doubled and half-written ones among them: killed, and the
// store killed beneath it, it finishes when it is run again, and nothing is lost or there twice.
func TestImportKilled(t *testing.T) {
	const entries, good = 500, 36
	p := newProgram(t)
	files := make([][]byte, good)
	for i := range files {
		files[i] = []byte{5, 2}
	}
	for i := range entries {
		principal := fmt.Sprintf("HTTP/w%03d.example.com@EXAMPLE.COM", i)
		for _, kvno := range []int{1, 2} {
			files[i%good] = append(files[i%good], keytabEntry(principal, kvno, 18, byte(i))...)
		}
		if i%10 == 0 { // it is in another one as well
			files[(i+1)%good] = append(files[(i+1)%good], keytabEntry(principal, 2, 18, byte(i))...)
		}
	}
	args := []string{"import", "--write", "--json"}
	file := func(name string, b []byte) {
		p.write(name, string(b))
		args = append(args, name)
	}
	for i, b := range files {
		file(fmt.Sprintf("%02d.keytab", i), b)
	}
	half := append([]byte{5, 2}, keytabEntry("HTTP/half@EXAMPLE.COM", 1, 18, 1)...)
	file("half.keytab", half[:len(half)-1])
	file("empty.keytab", nil)
	file("wrong.keytab", []byte("no keytab"))
	file("zeros.keytab", make([]byte, 4096))

	server, _ := p.start("serve")
	p.entries(0)
	first, _ := p.start(args...)
	p.entries(50)
	first.Process.Kill()
	first.Wait()

	second, said := p.start(args...)
	p.entries(200)
	server.Process.Kill()
	server.Wait()
	if err := second.Wait(); err == nil {
		t.Errorf("the store was killed, and import says that all is well:\n%.2000s", said)
	}
	server, log := p.start("serve")
	p.entries(200)

	cmd := p.command(args...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	cmd.Run()
	if cmd.ProcessState.ExitCode() != 3 {
		t.Fatalf("%v\n%s", cmd.ProcessState, &stderr)
	}
	var res imported
	if err := json.Unmarshal(out.Bytes(), &res); err != nil {
		t.Fatal(err)
	}
	if len(res.Files) != good+4 || len(res.Entries) != entries {
		t.Errorf("%d files, %d entries", len(res.Files), len(res.Entries))
	}
	for i, f := range res.Files {
		if f.CanGo != (i < good) || (f.Problem == "") != (i < good) {
			t.Errorf("%+v", f)
		}
	}
	for _, e := range res.Entries {
		if !e.Verified || e.Problem != "" || len(e.Keys) != 2 {
			t.Errorf("%+v", e)
		}
	}
	if !strings.Contains(stderr.String(), "400 of 500 principals") {
		t.Errorf("no progress:\n%s", &stderr)
	}
	all := p.entries(entries)
	if len(all) != entries {
		t.Errorf("%d entries", len(all))
	}
	for _, e := range all {
		if e.KVNO != 2 || e.Revision != 1 {
			t.Errorf("%+v", e)
		}
	}
	if out, err := p.command("backup", "BACKUP").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	p.checkDisk()
	server.Process.Signal(syscall.SIGTERM)
	if err := server.Wait(); err != nil {
		t.Errorf("%v\n%s", err, log)
	}
	core, _ := filepath.Glob(filepath.Join(p.dir, "core*"))
	if len(core) > 0 {
		t.Error(core)
	}
}
