package conf

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"gssproxyd/mech/reason"
	"gssproxyd/rpc/peer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// write puts files into a new directory and returns it.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func load(t testing.TB, text string) *Config {
	t.Helper()
	dir := write(t, map[string]string{"main.conf": text})
	c, err := Load(Source{File: dir + "/main.conf", Users: testUsers})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// problems loads what must not load.
func problems(t *testing.T, src Source) []string {
	t.Helper()
	src.Users = testUsers
	c, err := Load(src)
	errs, ok := errors.AsType[*Errors](err)
	if c != nil || !ok || len(errs.Problems) == 0 {
		t.Fatalf("Load = %v, %v", c, err)
	}
	return strings.Split(err.Error(), "\n")
}

func TestDefaults(t *testing.T) {
	c := load(t, "[service/a]\nmechs = krb5\neuid = 1000\n")
	s := c.Services[0]
	want := &Service{
		Name: "a", Where: s.Where, EUID: 1000, Mechs: []string{"krb5"},
		CredUsage: UsageBoth, FilterFlags: 1, MinLifetime: 15 * time.Second, UnmappedUser: "nobody",
	}
	if diff := cmp.Diff(want, s, cmp.FilterPath(unexported, cmp.Ignore())); diff != "" {
		t.Error(diff)
	}
	if c.Debug != 0 || c.SyslogStatus || c.RunAsUser != "" || c.Workers != 5 || c.DefaultSocket != SocketPath {
		t.Errorf("daemon: %+v", c)
	}
	if got := c.Sockets(); !reflect.DeepEqual(got, []string{SocketPath}) {
		t.Errorf("Sockets = %v", got)
	}
}

func unexported(p cmp.Path) bool {
	f, ok := p.Last().(cmp.StructField)
	return ok && strings.ToLower(f.Name()[:1]) == f.Name()[:1]
}

func TestEffectiveFlags(t *testing.T) {
	s := &Service{FilterFlags: 1 | 4, EnforceFlags: 4 | 8}
	if got := s.Effective(1 | 2); got != 2|8 {
		t.Errorf("flags %#x, want %#x: what is filtered goes, even if enforced", got, 2|8)
	}
}

func TestSockets(t *testing.T) {
	c := load(t, `[service/a]
mechs = krb5
euid = 0
socket = /run/b
[service/b]
mechs = krb5
euid = 1
socket = /run/b
[service/c]
mechs = krb5
euid = 0
`)
	if got, want := c.Sockets(), []string{SocketPath, "/run/b"}; !reflect.DeepEqual(got, want) {
		t.Errorf("Sockets = %v, want %v", got, want)
	}
}

// A program's socket is reached as the default one is, and by its whole name only.
func TestProgramSockets(t *testing.T) {
	c := load(t, `[gssproxy]
program_sockets = su passwd
[service/own]
mechs = krb5
euid = 1
socket = /run/own
[service/su]
mechs = krb5
euid = 1
program = /opt/none/su
[service/named]
mechs = krb5
euid = 2
socket = `+SocketPath+`
`)
	if got, want := c.Sockets(), []string{SocketPath, SocketPath + ".su", SocketPath + ".passwd", "/run/own"}; !reflect.DeepEqual(got, want) {
		t.Errorf("Sockets = %v, want %v", got, want)
	}
	su, other := peer.Info{UID: 1, Program: peer.Known("/opt/none/su")}, peer.Info{UID: 2}
	for _, test := range []struct {
		socket    string
		su, named bool
	}{
		{SocketPath, true, true},
		{SocketPath + ".su", true, true},
		{SocketPath + ".passwd", true, true}, // which program that is says the kernel, and no name
		{SocketPath + ".s", false, false},
		{SocketPath + ".suu", false, false},
		{SocketPath + ".", false, false},
		{SocketPath + "su", false, false},
		{"/run/own", false, false},
		{"/run/own.su", false, false},
		{"su", false, false},
	} {
		if d := c.Decide(&su, test.socket); (d.Service != nil && d.Service.Name == "su") != test.su {
			t.Errorf("%s: su gets %v", test.socket, d.Service)
		}
		if d := c.Decide(&other, test.socket); (d.Service != nil && d.Service.Name == "named") != test.named {
			t.Errorf("%s: another user gets %v", test.socket, d.Service)
		}
		if got := c.Needs(&peer.Info{}, test.socket) != 0; got != test.su {
			t.Errorf("%s: needs the process: %v", test.socket, got)
		}
	}
}

// A program's socket has to fit into an address, whatever the default socket is.
func TestProgramSocketTooLong(t *testing.T) {
	file := filepath.Join(write(t, map[string]string{"main.conf": "[gssproxy]\nprogram_sockets = su\n[service/a]\nmechs = krb5\neuid = 0\n"}), "main.conf")
	longest := "/" + strings.Repeat("s", maxSocket-len("/.su"))
	if _, err := Load(Source{File: file, DefaultSocket: longest}); err != nil {
		t.Error(err)
	}
	got := problems(t, Source{File: file, DefaultSocket: longest + "s"})
	if len(got) != 1 || !strings.HasPrefix(got[0], file+`:2: program_sockets = "su" makes the socket /sss`) || !strings.Contains(got[0], "has 108 bytes") {
		t.Errorf("%q", got)
	}
}

func TestUserProxy(t *testing.T) {
	c := UserProxy(1000)
	s := c.Services[0]
	if len(c.Services) != 1 || s.Name != "user-proxy" || s.EUID != 1000 || !s.AllowClientCcacheSync ||
		c.Decide(&peer.Info{UID: 1000}, "/run/user/1000/gssproxy/default.sock").Service != s ||
		c.Decide(&peer.Info{UID: 0}, "/run/user/1000/gssproxy/default.sock").Reason != reason.NoServiceForUID ||
		len(s.CredStore) != 0 || s.FilterFlags != 1 || s.MinLifetime != 15*time.Second || c.Workers != 2 {
		t.Errorf("%+v %+v", c, s)
	}
}

func TestMissingMainFile(t *testing.T) {
	// C: drop-ins alone are not enough.
	dir := write(t, map[string]string{"10-a.conf": "[service/a]\nmechs = krb5\neuid = 0\n"})
	got := problems(t, Source{File: dir + "/main.conf", Dir: dir})
	want := []string{dir + "/main.conf: the configuration file cannot be read: no such file or directory; the main file is needed even if drop-ins hold all services; create it, or name another with -c"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestMissingDropInDir(t *testing.T) {
	// C: fine.
	dir := write(t, map[string]string{"main.conf": "[service/a]\nmechs = krb5\neuid = 0\n"})
	c, err := Load(Source{File: dir + "/main.conf", Dir: dir + "/none", Users: testUsers})
	if err != nil || len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "/none: the directory of drop-ins does not exist") {
		t.Errorf("%v, %v", c, err)
	}
}

func TestFilesThatAreNone(t *testing.T) {
	// C skips directories and dangling links in silence, and follows links.
	dir := write(t, map[string]string{
		"main.conf": "[service/a]\nmechs = krb5\neuid = 0\n",
		"real":      "[service/c]\nmechs = krb5\neuid = 1\n",
		"d/file":    "not read",
	})
	for _, err := range []error{
		os.Mkdir(dir+"/d/10-d.conf", 0o755),
		os.Symlink("/nonexistent/file", dir+"/d/20-l.conf"),
		os.Symlink("../real", dir+"/d/30-r.conf"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	src := Source{File: dir + "/main.conf", Dir: dir + "/d"}
	got := problems(t, src)
	if len(got) != 2 || !strings.Contains(got[0], "/d/10-d.conf: the drop-in cannot be read: it is a directory, not a regular file") ||
		!strings.Contains(got[1], "/d/20-l.conf: the drop-in cannot be read: no such file") {
		t.Errorf("%q", got)
	}
	src.Users, src.Compat = testUsers, true
	c, err := Load(src)
	if err != nil || len(c.Warnings) != 2 || len(c.Services) != 2 || c.Services[1].Name != "c" {
		t.Errorf("%v, %v", c, err)
	}
	if want := []string{dir + "/main.conf", dir + "/d/30-r.conf"}; !reflect.DeepEqual(c.Files, want) {
		t.Errorf("Files = %v, want %v", c.Files, want)
	}
	src.File = dir
	if got := problems(t, src); !strings.Contains(got[0], "it is a directory, not a regular file") {
		t.Errorf("%q", got)
	}
}

func TestWorldWritable(t *testing.T) {
	// C: not checked.
	dir := write(t, map[string]string{"main.conf": "[service/a]\nmechs = krb5\neuid = 0\n"})
	if err := os.Chmod(dir+"/main.conf", 0o666); err != nil {
		t.Fatal(err)
	}
	c, err := Load(Source{File: dir + "/main.conf", Users: testUsers})
	if err != nil || len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "everybody may write to the file; chmod o-w") {
		t.Errorf("%v, %v", c, err)
	}
}

func TestEncodings(t *testing.T) {
	const text = "[service/a]\nmechs = krb5\neuid = 0\n"
	for name, data := range map[string]string{
		"UTF-16 with a mark": "\xff\xfe[\x00]\x00", // C converts it
		"UTF-16, big endian": "\xfe\xff\x00[\x00]",
		"not UTF-8":          text + "# \xff\n", // C refuses it
		"too long":           text + strings.Repeat("#", maxFile),
		"long key":           text + strings.Repeat("k", maxName) + " = 1\n",
		"long section":       text + "[" + strings.Repeat("s", maxName+1) + "]\n",
	} {
		dir := write(t, map[string]string{"main.conf": data})
		got := problems(t, Source{File: dir + "/main.conf"})
		if len(got) != 1 && !strings.HasPrefix(name, "UTF-16") || !strings.HasPrefix(got[0], dir+"/main.conf:") || len(got[0]) > len(dir)+300 {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestProgramBehindLink(t *testing.T) {
	// C: no warning; the service never matches.
	dir := write(t, map[string]string{"program": "", "main.conf": ""})
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("program", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for program, want := range map[string]int{"/link": 1, "/program": 0, "/absent": 0} {
		c := load(t, "[service/a]\nmechs = krb5\neuid = 0\nprogram = "+dir+program+"\n")
		if len(c.Warnings) != want || want > 0 && !strings.HasSuffix(c.Warnings[0], "; write "+dir+"/program") {
			t.Errorf("%s: %q", program, c.Warnings)
		}
	}
}

func TestUserServiceFails(t *testing.T) {
	// Not to be taken for "no such user".
	dir := write(t, map[string]string{"main.conf": "[gssproxy]\nrun_as_user = daemon\n[service/a]\nmechs = krb5\neuid = www-data\n"})
	_, err := Load(Source{File: dir + "/main.conf", Users: brokenUsers{}, Compat: true})
	if err == nil || strings.Count(err.Error(), "cannot be looked up: the directory is down") != 2 {
		t.Error(err)
	}
	if errs, ok := errors.AsType[*Errors](err); !ok || !errs.Temporary() {
		t.Error("what may pass is taken for an error in the files")
	}
	dir = write(t, map[string]string{"main.conf": "[service/a]\nmechs = krb5\neuid = www-data\ntrustd = yes\n"})
	_, err = Load(Source{File: dir + "/main.conf", Users: brokenUsers{}})
	if errs, ok := errors.AsType[*Errors](err); !ok || errs.Temporary() {
		t.Errorf("an error in the files is taken for one that may pass: %v", err)
	}
}

type brokenUsers struct{}

var errDown = errors.New("the directory is down")

func (brokenUsers) UID(string) (uint32, error)  { return 0, errDown }
func (brokenUsers) Name(uint32) (string, error) { return "", errDown }
func (brokenUsers) GID(string) (uint32, error)  { return 0, errDown }

// What Print writes loads again and means the same, for every case that loads.
func TestPrintLoadsAgain(t *testing.T) {
	files, _ := filepath.Glob("testdata/cases/*.txtar")
	loaded := 0
	for _, name := range files {
		_, dir := unpack(t, name)
		src := Source{File: dir + "/main.conf", Dir: dir + "/d", Users: testUsers, DefaultSocket: dir + "/default.sock"}
		c, err := Load(src)
		if err != nil {
			continue
		}
		loaded++
		for _, all := range []bool{false, true} {
			first := printed(t, c, all)
			again := write(t, map[string]string{"main.conf": first})
			src.File, src.Dir = again+"/main.conf", ""
			d, err := Load(src)
			if err != nil {
				t.Errorf("%s: %v\n%s", name, err, first)
				continue
			}
			where := cmp.FilterPath(func(p cmp.Path) bool { return unexported(p) || p.Last().String() == ".Where" }, cmp.Ignore())
			if diff := cmp.Diff(c.Services, d.Services, where); diff != "" {
				t.Errorf("%s:\n%s", name, diff)
			}
			if c.Debug != d.Debug || c.SyslogStatus != d.SyslogStatus || c.RunAsUser != d.RunAsUser || c.Workers != d.Workers {
				t.Errorf("%s: %+v, then %+v", name, c, d)
			}
		}
	}
	if loaded < 20 {
		t.Errorf("only %d cases load", loaded)
	}
}

func printed(t *testing.T, c *Config, all bool) string {
	t.Helper()
	var b bytes.Buffer
	if err := c.Print(&b, all); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestPrint(t *testing.T) {
	dir := write(t, map[string]string{
		"main.conf": "[gssproxy]\ndebug = yes\n[service/web]\nmechs = krb5\neuid = www-data\ncred_store = keytab:/a\ncred_store = ccache:KCM:\nfilter_flags = -DELEGATE\n",
	})
	c, err := Load(Source{File: dir + "/main.conf", Users: testUsers})
	if err != nil {
		t.Fatal(err)
	}
	const short = `# Effective configuration; default socket /var/lib/gssproxy/default.sock
# read /main.conf
# everything else has its default, which gssproxyd check --all shows

[gssproxy]
debug = yes
debug_level = 1

# /main.conf:3
[service/web]
mechs = krb5
euid = 33
cred_store = keytab:/a
cred_store = ccache:KCM:
filter_flags = -DELEGATE
`
	if d := cmp.Diff(short, strings.ReplaceAll(printed(t, c, false), dir, "")); d != "" {
		t.Error(d)
	}
	got := strings.ReplaceAll(printed(t, c, true), dir, "")
	for _, want := range []string{
		"# Effective configuration; default socket /var/lib/gssproxy/default.sock\n# read /main.conf\n\n[gssproxy]\n# /main.conf:2\ndebug = yes\n",
		"# default\nsyslog_status = no\n# run_as_user is not set\n",
		"\n\n# /main.conf:3\n[service/web]\n# /main.conf:4\nmechs = krb5\n# /main.conf:5\neuid = 33\n",
		"# /main.conf:6\ncred_store = keytab:/a\n# /main.conf:7\ncred_store = ccache:KCM:\n",
		"# /main.conf:8\nfilter_flags = -DELEGATE\n",
		"# default\nmin_lifetime = 15\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestOptions(t *testing.T) {
	seen := map[string]bool{}
	for i := range Options {
		o := &Options[i]
		if id := o.Section + " " + o.Key; seen[id] {
			t.Errorf("%s is there twice", id)
		} else {
			seen[id] = true
		}
		if o.Instead != "" {
			continue
		}
		if o.Text == "" || o.Type == "" || o.set == nil || o.get == nil || o.Required && o.Default != "" {
			t.Errorf("incomplete: %+v", o)
		}
		if len(o.Key) < 4 {
			continue // too short for a typo to be one
		}
		typo := o.Key[:2] + o.Key[3:]
		if got := keyHint(o.Section, typo); !strings.Contains(got, o.Key) {
			t.Errorf("%s: %s", typo, got)
		}
	}
	for _, c := range []target{{cfg: &Config{}}, {cfg: &Config{}, svc: &Service{}}, {cfg: &Config{}, store: &KeyStore{}}} {
		r := newReader(Source{Users: testUsers})
		if r.defaults(c); len(r.errors)+len(r.warnings) > 0 {
			t.Errorf("defaults: %v %v", r.errors, r.warnings)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "abc", 0}, {"kbr5", "krb5", 1}, {"keytabs", "keytab", 1}, {"kitten", "sitting", 3}, {"ca", "abc", 3}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("distance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
