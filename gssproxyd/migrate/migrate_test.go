package migrate

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestMain is a daemon where the environment says on which sockets it listens.
func TestMain(m *testing.M) {
	sockets := filepath.SplitList(os.Getenv("TEST_LISTEN"))
	for _, path := range sockets {
		if _, err := net.Listen("unix", path); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	if len(sockets) == 0 {
		os.Exit(m.Run())
	}
	fmt.Println("listens")
	io.Copy(io.Discard, os.Stdin) // to its end
}

// daemon has a process of that name listen on sockets until the test ends.
func daemon(t *testing.T, name string, sockets ...string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name) // the kernel calls a process after the last component
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	cmd.Env = append(os.Environ(), "TEST_LISTEN="+strings.Join(sockets, ":"))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "listens\n" {
		t.Fatalf("%s: %q, %v", name, line, err)
	}
}

// A socket that the configuration has got since the record was written goes back too, where somebody
// serves it; what the record has is not lost for that.
func TestBackWithMore(t *testing.T) {
	dir, err := os.MkdirTemp("", "migrate") // short: sockets are in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	at := func(name string) string { return filepath.Join(dir, name) }
	daemon(t, cDaemon.name, at("first.aside"), at("more.aside"))
	daemon(t, ours.name, at("first"), at("more"))
	if err := os.WriteFile(at(recordName), []byte(`{"sockets":["`+at("first")+`"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ configured, exchanged []string }{
		{[]string{"first"}, []string{"first"}},
		{[]string{"more", "first"}, []string{"first", "more"}},
		{[]string{"more", "unserved"}, []string{"first", "more"}},
		{nil, []string{"first"}}, // a configuration that cannot be read
	} {
		h := &Host{StateDir: dir}
		for _, name := range test.configured {
			h.Sockets = append(h.Sockets, at(name))
		}
		_, err := h.Look()
		var steps []Step
		if err == nil {
			steps, err = h.Back(0, false)
		}
		if err != nil {
			t.Errorf("%v: %v", test.configured, err)
		}
		var got []string
		for _, s := range steps {
			if rest, ok := strings.CutPrefix(s.Text, "exchange "+dir+"/"); ok {
				name, _, _ := strings.Cut(rest, " ")
				got = append(got, name)
			}
		}
		if !slices.Equal(got, test.exchanged) {
			t.Errorf("%v: %v are exchanged, expected %v", test.configured, got, test.exchanged)
		}
	}
}

func TestIsIn(t *testing.T) {
	for cgroups, want := range map[string]bool{
		"0::/system.slice/gssproxy.service\n":                       true,
		"9:name=systemd:/system.slice/gssproxy.service\n0::/\n":     true,
		"0::/system.slice/gssproxy.service/supervised\n":            true,
		"0::/system.slice/my-gssproxy.service\n":                    false,
		"0::/system.slice/gssproxyd.service\n":                      false,
		"0::/user.slice/user-0.slice/session-1.scope\n4:memory:/\n": false,
		"": false,
	} {
		if got := isIn(cgroups, unitC); got != want {
			t.Errorf("%q: %v", cgroups, got)
		}
	}
}

func TestNewer(t *testing.T) {
	for version, want := range map[string]bool{
		"0.9.1-1+b1":  false,
		"0.8.4-7.el9": false,
		"0.9.2-1":     true,
		"1:0.9.10-2":  true,
		"0.10-1":      true,
		"1.0.0~rc1-1": true,
		"":            false,
		"from-git":    false,
	} {
		if got := newer(version); got != want {
			t.Errorf("%q: %v", version, got)
		}
	}
}

// A socket that was set aside has its name again, whatever has become of that.
func TestPutBack(t *testing.T) {
	for now, take := range map[string]func(path string) error{
		"the same":      func(path string) error { return os.Link(path+".aside", path) },
		"another":       func(path string) error { return os.WriteFile(path, []byte("another"), 0o600) },
		"nothing there": func(string) error { return nil },
	} {
		path := filepath.Join(t.TempDir(), "socket")
		err := os.WriteFile(path+".aside", []byte("old"), 0o600)
		if err == nil {
			err = take(path)
		}
		if err == nil {
			err = putBack(path)
		}
		b, err2 := os.ReadFile(path)
		_, err3 := os.Lstat(path + ".aside")
		if err != nil || err2 != nil || string(b) != "old" || !os.IsNotExist(err3) {
			t.Errorf("%s: %v; %q, %v; %v", now, err, b, err2, err3)
		}
	}
}

// A socket is exchanged with the one that was set aside, or takes the place of one that has gone.
func TestSwap(t *testing.T) {
	for _, there := range []bool{true, false} {
		path := filepath.Join(t.TempDir(), "socket")
		if err := os.WriteFile(path+".aside", []byte("aside"), 0o600); err != nil {
			t.Fatal(err)
		}
		if there {
			if err := os.WriteFile(path, []byte("taken"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		err := swap(path)
		b, err2 := os.ReadFile(path)
		other, err3 := os.ReadFile(path + ".aside")
		if err != nil || err2 != nil || string(b) != "aside" || there != (err3 == nil && string(other) == "taken") {
			t.Errorf("one to exchange with, %v: %v; %q, %v; %q, %v", there, err, b, err2, other, err3)
		}
	}
	if err := swap(filepath.Join(t.TempDir(), "socket")); err == nil {
		t.Error("of nothing: no error")
	}
}

func TestPluginIn(t *testing.T) {
	const libc = "7f0000000000-7f0000001000 r--p 00000000 08:01 77    /usr/lib/libc.so.6\n"
	for maps, want := range map[string]string{
		libc: "",
		libc + "7f0000002000-7f0000003000 r-xp 00000000 08:01 78   /usr/lib64/gssproxy/proxymech.so\n":           "/usr/lib64/gssproxy/proxymech.so",
		libc + "7f0000002000-7f0000003000 r-xp 00000000 08:01 78   /usr/lib64/gssproxy/proxymech.so (deleted)\n": "/usr/lib64/gssproxy/proxymech.so",
		libc + "7f0000002000-7f0000003000 r-xp 00000000 08:01 78   /opt/my plugins/gssproxyd_mech.so\n":          "/opt/my plugins/gssproxyd_mech.so",
		libc + "7f0000002000-7f0000003000 r-xp 00000000 08:01 78   /usr/lib64/notproxymech.so\n":                 "",
	} {
		if got := pluginIn([]byte(maps)); got != want {
			t.Errorf("%q, expected %q, of\n%s", got, want, maps)
		}
	}
}

// Units and their drop-ins, and what their EnvironmentFile says.
func TestUnits(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("SYSTEMD_UNIT_PATH", dir+":"+dir+"/again")
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("web.service", "[Service]\n# Environment=GSS_USE_PROXY=yes\nEnvironment=LANG=C \\\n  GSS_USE_PROXY=yes\n")
	write("db.service", "[Unit]\nAfter=gssproxy.service\n")
	write("db.service.d/more.conf", "[Service]\nEnvironmentFile=-"+dir+"/env\nEnvironmentFile=-/nonexistent\n[Unit]\nBindsTo=a.service gssproxy.service\n")
	write("env", "A=1\nGSS_USE_PROXY=1\n")
	write("README", "GSS_USE_PROXY=1\n")
	if err := os.Symlink(dir, dir+"/again"); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range Programs() {
		if strings.HasPrefix(l.Text, dir) {
			got = append(got, map[bool]string{true: "! "}[l.Attend]+strings.TrimPrefix(l.Text, dir))
		}
	}
	want := []string{
		"! /db.service.d/more.conf:5: db.service is stopped together with gssproxy.service: name gssproxyd.service there first: BindsTo=a.service gssproxy.service",
		"/env:2: db.service uses it: GSS_USE_PROXY=1",
		"/web.service:4: web.service uses it: GSS_USE_PROXY=yes",
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nexpected\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
