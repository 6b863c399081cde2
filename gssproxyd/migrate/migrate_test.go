package migrate

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

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
