package krb5conf

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gssproxyd/mech/krb5/etype"
	"gssproxyd/tests/lab"
)

// files writes files into one directory and returns its name; names with a slash go into
// subdirectories.
func files(t testing.TB, content map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range content {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// load loads a single file with that text.
func load(t testing.TB, text string) (*Config, error) {
	t.Helper()
	return Load([]string{files(t, map[string]string{"krb5.conf": text}) + "/krb5.conf"})
}

func mustLoad(t testing.TB, text string) *Config {
	t.Helper()
	c, err := load(t, text)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const full = `# a comment
this is one too, until the first section
[libdefaults]
	default_realm = EXAMPLE.TEST   
	; comment
	clockskew = 600
	permitted_enctypes = DEFAULT -aes128-cts
	quoted = "a \"b\"\tc\n" rest
	empty = ""
	EXAMPLE.TEST = {
		per_realm = 1
	}
	default_keytab_name = FILE:/keys/%{uid}.%{null}keytab
	ignore_acceptor_hostname = on
	client_aware_channel_bindings = yes
	enforce_ok_as_delegate = 1
[realms]
	EXAMPLE.TEST = {
		kdc = https://kdc.example.test/KdcProxy
		kdc = kdc2:88
		auth_to_local_names = {
			alice = al
			host/x = box
			alice = ali
		}
		auth_to_local = RULE:[1:$1]s/a/b/
		auth_to_local = DEFAULT
	}
	OTHER.TEST =
	{
		kdc = other
	}
[unknown]
	a = {
		b = {
			c = {
				d = deep
			}
		}
	}
[domain_realm]
	.example.test = EXAMPLE.TEST
	www.example.test = WEB.TEST
	test = TOP.TEST
[capaths]
	A = {
		B = .
		C = M1
		C = M2 ignored
	}
[realms]
	EXAMPLE.TEST = {
		kdc = kdc3
	}
`

func TestLoad(t *testing.T) {
	c := mustLoad(t, full)
	if c.DefaultRealm != "EXAMPLE.TEST" || c.Clockskew != 10*time.Minute || !c.IgnoreAcceptorHostname || !c.ClientAwareBindings || !c.EnforceOKAsDelegate || c.allowRC4 {
		t.Errorf("%+v", c)
	}
	if want := []etype.ID{18, 20, 19}; !slices.Equal(only(c.PermittedEnctypes, 18, 17, 20, 19, 23), want) {
		t.Errorf("permitted %v", c.PermittedEnctypes)
	}
	if want := "FILE:/keys/" + strconv.Itoa(os.Getuid()) + ".keytab"; c.DefaultKeytabName != want {
		t.Errorf("keytab %q", c.DefaultKeytabName)
	}
	for _, tt := range []struct{ path, want string }{
		{"libdefaults/quoted", "a \"b\"\tc\n"},
		{"libdefaults/empty", ""},
		{"libdefaults/EXAMPLE.TEST/per_realm", "1"},
		{"realms/EXAMPLE.TEST/kdc", "https://kdc.example.test/KdcProxy"},
		{"realms/OTHER.TEST/kdc", "other"},
		{"unknown/a/b/c/d", "deep"},
	} {
		if got, ok := c.Get(strings.Split(tt.path, "/")...); !ok || got != tt.want {
			t.Errorf("%s: %q, %v; want %q", tt.path, got, ok, tt.want)
		}
	}
	if _, ok := c.Get("libdefaults", "EXAMPLE.TEST"); ok {
		t.Error("a subsection has a value")
	}
	if _, ok := c.Get(); ok {
		t.Error("no path has a value")
	}
	if diff := cmp.Diff([]string{"https://kdc.example.test/KdcProxy", "kdc2:88", "kdc3"}, c.All("realms", "EXAMPLE.TEST", "kdc")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"alice": "ali", "host/x": "box"}, c.AuthToLocalNames("EXAMPLE.TEST")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"RULE:[1:$1]s/a/b/", "DEFAULT"}, c.AuthToLocal("EXAMPLE.TEST")); diff != "" {
		t.Error(diff)
	}
	if c.AuthToLocal("OTHER.TEST") != nil || len(c.AuthToLocalNames("OTHER.TEST")) != 0 {
		t.Error("OTHER.TEST has rules")
	}
	for host, want := range map[string]string{
		"host.example.test": "EXAMPLE.TEST", "A.B.Example.Test.": "EXAMPLE.TEST", "example.test": "TOP.TEST",
		"www.example.test": "WEB.TEST", "x.www.example.test": "WEB.TEST", "x.test": "TOP.TEST", "test": "TOP.TEST",
		"elsewhere": "", "": "", "10.0.0.1": "", "::1": "",
	} {
		if got := c.DomainRealm(host); got != want {
			t.Errorf("realm of %q: %q, want %q", host, got, want)
		}
	}
	if got := c.Capath("A", "B"); got == nil || len(got) != 0 {
		t.Errorf("direct path: %#v", got)
	}
	if got := c.Capath("A", "C"); !slices.Equal(got, []string{"M1", "M2"}) {
		t.Errorf("path: %v", got)
	}
	if got := c.Capath("B", "A"); got != nil {
		t.Errorf("no path: %#v", got)
	}
	if len(c.Warnings) != 0 {
		t.Errorf("warnings %q", c.Warnings)
	}
}

// only keeps the given ids, for a list that grows with what is supported.
func only(list []etype.ID, ids ...etype.ID) []etype.ID {
	return slices.DeleteFunc(slices.Clone(list), func(id etype.ID) bool { return !slices.Contains(ids, id) })
}

func TestDefaults(t *testing.T) {
	dir := t.TempDir()
	c, err := Load([]string{dir + "/none", "", dir + "/neither"})
	if err != nil {
		t.Fatal(err)
	}
	if c.DefaultRealm != "" || c.Clockskew != 5*time.Minute || c.IgnoreAcceptorHostname || c.ClientAwareBindings || c.EnforceOKAsDelegate {
		t.Errorf("%+v", c)
	}
	if want := []etype.ID{18, 17, 20, 19}; !slices.Equal(only(c.PermittedEnctypes, 16, 17, 18, 19, 20, 23, 24), want) {
		t.Errorf("permitted %v", c.PermittedEnctypes)
	}
	if c.DefaultKeytabName != "FILE:/etc/krb5.keytab" || c.DefaultRcacheName != "" ||
		c.DefaultCCacheName != fmt.Sprintf("FILE:/tmp/krb5cc_%d", os.Getuid()) ||
		c.DefaultClientKeytabName != fmt.Sprintf("FILE:/etc/krb5/user/%d/client.keytab", os.Geteuid()) {
		t.Errorf("%+v", c)
	}
	if len(c.files) != 0 || !slices.Equal(c.Watch, []string{dir + "/none", dir + "/neither"}) {
		t.Errorf("files %q, watch %q", c.files, c.Watch)
	}
	if got := Files(func(string) string { return "" }); !slices.Equal(got, []string{"/etc/krb5.conf"}) {
		t.Errorf("default files %q", got)
	}
	if got := Files(func(k string) string { return map[string]string{"KRB5_CONFIG": "/a:/b"}[k] }); !slices.Equal(got, []string{"/a", "/b"}) {
		t.Errorf("KRB5_CONFIG gives %q", got)
	}
	if c, err := Load([]string{"/dev/null"}); err != nil || c.DefaultRealm != "" {
		t.Errorf("/dev/null: %v", err)
	}
}

func TestEnctypes(t *testing.T) {
	for _, tt := range []struct {
		lines string
		want  []etype.ID // of 16 to 20 and 23
	}{
		{"", []etype.ID{18, 17, 20, 19}},
		{"allow_rc4 = true", []etype.ID{18, 17, 20, 19, 23}},
		{"permitted_enctypes = aes", []etype.ID{18, 17, 20, 19}},
		{"permitted_enctypes = aes256-sha2,aes128-cts-hmac-sha1-96 AES256-CTS", []etype.ID{20, 17, 18}},
		{"permitted_enctypes = rc4-hmac", []etype.ID{23}},
		{"permitted_enctypes = aes rc4", []etype.ID{18, 17, 20, 19, 23}},
		{"permitted_enctypes = default +rc4 -aes256-cts", []etype.ID{17, 20, 19, 23}},
		{"permitted_enctypes = aes -aes +aes128-sha2", []etype.ID{19}},
		{"permitted_enctypes = aes256-cts nonsense arcfour-hmac-exp", []etype.ID{18}},
	} {
		c := mustLoad(t, "[libdefaults]\n"+tt.lines+"\n")
		if got := only(c.PermittedEnctypes, 16, 17, 18, 19, 20, 23, 24); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.lines, got, tt.want)
		}
	}
	c := mustLoad(t, "[libdefaults]\n\npermitted_enctypes = aes nonsense\n")
	if len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "krb5.conf:3: ") || !strings.Contains(c.Warnings[0], `"nonsense"`) {
		t.Errorf("warnings %q", c.Warnings)
	}
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct{ text, line, says string }{
		{"[libdefaults\n", "1", "[name]"},
		{"[libdefaults] x\n", "1", "expected nothing"},
		{"[a]\nno relation\n", "2", "key = value"},
		{"[a]\nkey with blank = x\n", "2", "key = value"},
		{"[a]\n = x\n", "2", "key = value"},
		{"[a]\n}\n", "2", "} without {"},
		{"[a]\nb = {\n[c]\n", "3", "} first"},
		{"[a]\nb =\nc = d\n", "3", "line with {"},
		{"[a]\ninclude DIR/none\n", "2", "no such file"},
		{"[a]\nincludedir DIR/none\n", "2", "no such file"},
		{"include DIR/krb5.conf\n", "1", "at most 10 levels"},
		{"[a]\n" + strings.Repeat("b = {\n", 70), "65", "at most 64"},
		{"[libdefaults]\nallow_rc4 = maybe\n", "2", "yes or no"},
		{"[libdefaults]\nallow_weak_crypto =\n{\n}\nallow_weak_crypto = 2\n", "5", "yes or no"},
		{"[libdefaults]\ndns_canonicalize_hostname = never\n", "2", "fallback"},
		{"[libdefaults]\ndefault_keytab_name = %{nope}\n", "2", "uid, euid"},
		{"[libdefaults]\ndefault_keytab_name = %{uid\n", "2", "no closing }"},
		{"[libdefaults]\npermitted_enctypes = nonsense\n", "2", "no supported encryption type"},
	} {
		_, err := load(t, tt.text)
		if err == nil || !strings.Contains(err.Error(), "/krb5.conf:"+tt.line+": ") || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%q: error %v; want one in line %s with %q", tt.text, err, tt.line, tt.says)
		}
	}
	dir := files(t, map[string]string{"krb5.conf": "[a]\ninclude DIR/b\n", "b": "[b]\n\nbroken\n"})
	c, err := Load([]string{dir + "/krb5.conf"})
	if err == nil || !strings.Contains(err.Error(), dir+"/b:3: ") {
		t.Errorf("error in an included file: %v", err)
	}
	if !slices.Equal(c.Watch, []string{dir + "/krb5.conf", dir + "/b"}) { // a correction is to be seen
		t.Errorf("watch %q", c.Watch)
	}
}

// TestCrashers loads files that crashed another reader. Each has a relation without a key in its
// second line, which is an error here as in MIT's library.
func TestCrashers(t *testing.T) {
	names, err := filepath.Glob("../../../testdata/crashers/config-*.hex")
	if err != nil || len(names) < 2 {
		t.Fatalf("files %q, %v", names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text, err := hex.DecodeString(strings.TrimSpace(string(b)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := load(t, string(text)); err == nil || !strings.Contains(err.Error(), "/krb5.conf:2: ") || !strings.Contains(err.Error(), "is no relation") {
			t.Errorf("%s, %q: error %v; want one in line 2", filepath.Base(name), text, err)
		}
	}
}

func TestTolerated(t *testing.T) {
	c := mustLoad(t, "module DIR/x.so:arg\n  [ignored] before the first section\nfoo\n[libdefaults]  \n default_realm=R\n clockskew = soon\n"+
		"[realms]\r\n R = {\r\n kdc = k\r\n }  anything\r\n[appdefaults]\n pam = {\n a = b\n")
	if c.DefaultRealm != "R" || c.Clockskew != 5*time.Minute {
		t.Errorf("%+v", c)
	}
	if got, _ := c.Get("realms", "R", "kdc"); got != "k" {
		t.Errorf("kdc %q", got)
	}
	for i, says := range []string{"krb5.conf:1: configuration module", `krb5.conf:2: "  [ignored]`, `krb5.conf:10: "anything" behind }`, `"pam"`, "krb5.conf:6: clockskew"} {
		if i >= len(c.Warnings) || !strings.Contains(c.Warnings[i], says) {
			t.Errorf("warnings %q; want %q in the %d. one", c.Warnings, says, i+1)
		}
	}
}

func TestIncludes(t *testing.T) {
	dir := files(t, map[string]string{
		"krb5.conf":     "includedir DIR/d\ninclude DIR/one\n[libdefaults]\n\tdefault_realm = MAIN\n\tclockskew = 100\ninclude DIR/one\n\tkey = main\n",
		"one":           "a comment\n[libdefaults]\n\tkey = one\n",
		"d/a.conf":      "[libdefaults]\n\torder = a\n",
		"d/Z-9_z":       "[libdefaults]\n\torder = Z\n",
		"d/b.c.conf":    "[libdefaults]\n\torder = b\n",
		"d/.hidden":     "broken [",
		"d/.x.conf":     "[broken\n",
		"d/x.conf~":     "[broken\n",
		"d/x.rpmsave":   "[broken\n",
		"d/sub/in.conf": "[broken\n",
	})
	c, err := Load([]string{dir + "/krb5.conf"})
	if err != nil {
		t.Fatal(err)
	}
	if got := c.All("libdefaults", "order"); !slices.Equal(got, []string{"Z", "a", "b"}) {
		t.Errorf("order %q", got)
	}
	if got := c.All("libdefaults", "key"); !slices.Equal(got, []string{"one", "one", "main"}) || c.DefaultRealm != "MAIN" {
		t.Errorf("key %q, realm %q", got, c.DefaultRealm)
	}
	want := []string{dir + "/krb5.conf", dir + "/d/Z-9_z", dir + "/d/a.conf", dir + "/d/b.c.conf", dir + "/one", dir + "/one"}
	if diff := cmp.Diff(want, c.files); diff != "" {
		t.Error(diff)
	}
	if !slices.Contains(c.Watch, dir+"/d") || !slices.Contains(c.Watch, dir+"/one") {
		t.Errorf("watch %q", c.Watch)
	}
}

func TestSeveralFiles(t *testing.T) {
	dir := files(t, map[string]string{
		"a":             "[libdefaults]\n\tdefault_realm = A\n[realms]\n\tR = {\n\tkdc = ka\n\t}\n\tF = {\n\tkdc = fa\n\t}*\n[last]*\n\tx = a\n[one]\n\tx* = a\n\ty = a\n",
		"b":             "[libdefaults]\n\tdefault_realm = B\n\tclockskew = 7\n[realms]\n\tR = {\n\tkdc = kb\n\t}\n\tF = {\n\tkdc = fb\n\t}\n[last]\n\tx = b\n\ty = b\n[one]\n\tx = b\n\ty = b\n",
		"conf.d/z.conf": "[libdefaults]\n\tqualify_shortname = z\n",
	})
	c, err := Load([]string{dir + "/a", dir + "/missing", dir + "/b", dir + "/conf.d"})
	if err != nil {
		t.Fatal(err)
	}
	if c.DefaultRealm != "A" || c.Clockskew != 7*time.Second || c.QualifyShortname != "z" {
		t.Errorf("%+v", c)
	}
	for path, want := range map[string][]string{
		"realms/R/kdc": {"ka", "kb"}, "realms/F/kdc": {"fa"}, "last/x": {"a"}, "last/y": nil, "one/x": {"a"}, "one/y": {"a", "b"},
	} {
		if diff := cmp.Diff(want, c.All(strings.Split(path, "/")...)); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
	one := mustLoad(t, "[s]\n\ta = 1\n[s]*\n\ta = 2\n[s]\n\ta = 3\n\tt = {\n\tb = 3\n\t}\n[t]\n\tu = {\n\ta = 1\n\t}*\n\tu = {\n\ta = 2\n\t}\n\tc* = 1\n\tc = 2\n\td = 1\n")
	for path, want := range map[string][]string{"s/a": {"1", "2"}, "s/t/b": nil, "t/u/a": {"1"}, "t/c": {"1"}, "t/d": {"1"}} {
		if diff := cmp.Diff(want, one.All(strings.Split(path, "/")...)); diff != "" {
			t.Errorf("in one file, %s: %s", path, diff)
		}
	}
	if os.Geteuid() == 0 {
		t.Log("root reads every file: unreadable files are not tried")
		return
	}
	if err := os.Chmod(dir+"/a", 0); err != nil {
		t.Fatal(err)
	}
	if c, err := Load([]string{dir + "/a", dir + "/b"}); err != nil || c.DefaultRealm != "B" || len(c.Warnings) != 1 {
		t.Errorf("first file unreadable: %v", err)
	}
	if _, err := Load([]string{dir + "/a"}); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("only file unreadable: %v", err)
	}
}

func TestValues(t *testing.T) {
	for s, want := range map[string]string{
		"300": "5m0s", "0": "0s", "5m": "5m0s", "1h30m": "1h30m0s", "1h30": "", "0:05:00": "5m0s", "1:30": "1h30m0s", "1-2:03:04": "26h3m4s",
		"1d": "24h0m0s", "1d 2h 3m 4s": "26h3m4s", "1d4s": "24h0m4s", "4s1d": "", "": "", "x": "", "5 m": "", "-30": "-30s", "1:2:345": "",
		"99999999999": "", "30000d": "", "  60 ": "1m0s", "1:2:3:4": "", "-": "", "5mm": "", "5m5m": "", "1-2:3": "",
	} {
		d, ok := ParseDuration(s)
		got := ""
		if ok {
			got = d.String()
		}
		if got != want {
			t.Errorf("duration %q: %q, want %q", s, got, want)
		}
	}
	for s, want := range map[string]string{
		"y": "true", "YES": "true", "True": "true", "t": "true", "1": "true", "on": "true",
		"n": "false", "no": "false", "FALSE": "false", "nil": "false", "0": "false", "off": "false",
		"": "", "2": "", "enable": "", "f": "",
	} {
		v, ok := ParseBool(s)
		got := ""
		if ok {
			got = fmt.Sprint(v)
		}
		if got != want {
			t.Errorf("boolean %q: %q, want %q", s, got, want)
		}
	}
	t.Setenv("TMPDIR", "/var/t")
	for s, want := range map[string]string{
		"%{TEMP}/x": "/var/t/x", "%{euid}-%{USERID}": fmt.Sprintf("%d-%d", os.Geteuid(), os.Getuid()), "%{null}": "", "100%": "100%", "a%{BINDIR}": "a/usr/bin",
	} {
		if got, err := expandTokens(s); err != nil || got != want {
			t.Errorf("%q expands to %q, %v; want %q", s, got, err, want)
		}
	}
	if got, err := expandTokens("%{username}"); err != nil || got == "" {
		t.Errorf("user name %q, %v", got, err)
	}
	t.Setenv("TMPDIR", "")
	if got, _ := expandTokens("%{TEMP}"); got != "/tmp" {
		t.Errorf("TEMP is %q", got)
	}
	dir := files(t, map[string]string{"r": "# search no\nnameserver 1.2.3.4\ndomain first.test\nsearch second.test. third.test\n", "e": "nameserver 1.2.3.4\n"})
	if got := searchDomain(dir + "/r"); got != "second.test" {
		t.Errorf("search domain %q", got)
	}
	if got := searchDomain(dir + "/e"); got != "" {
		t.Errorf("search domain %q", got)
	}
}

// oracle is MIT's profile library, asked through testdata/profile.c.
type oracle struct {
	in  io.Writer
	out *bufio.Scanner
}

func mitProfile(t *testing.T) *oracle {
	t.Helper()
	cmd := exec.Command(lab.BuildC(t, "testdata/profile.c"))
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
	return &oracle{in, bufio.NewScanner(out)}
}

func (o *oracle) ask(t rapid.TB, files string, path ...string) string {
	line := hex.EncodeToString([]byte(files))
	for _, p := range path {
		line += " " + hex.EncodeToString([]byte(p))
	}
	if _, err := fmt.Fprintln(o.in, line); err != nil {
		t.Fatal(err)
	}
	if !o.out.Scan() {
		t.Fatal("MIT's library ended: ", o.out.Err())
	}
	return o.out.Text()
}

// answer is ours in the oracle's words.
func answer(names []string, path ...string) string {
	c, err := Load(names)
	if err != nil {
		return "!"
	}
	var b strings.Builder
	for i, v := range c.All(path...) {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "=%x", v)
	}
	return b.String()
}

// Random files mean the same here and in MIT's library: every line is drawn from what the grammar
// is made of, with few enough names that they meet.
func TestProfileMIT(t *testing.T) {
	o := mitProfile(t)
	dir := files(t, map[string]string{
		"inc":      "ignored\n[s]\n\ta = inc\n[t]*\n\tb = inc\n",
		"open":     "[s]\n\tt = {\n\ta = open\n",
		"bad":      "[s\n",
		"d/1":      "[s]\n\ta = d1\n\tt = {\n\tb = d1\n\t}*\n",
		"d/2.conf": "[t]\n\ta = d2\n",
		"d/3~":     "[broken",
	})
	lines := []string{
		"[s]", "[t]", "[s]*", "[s] ", "[ s]", "[s", "[s]x", " [t]", "}", "}", "}", "}*", "} x", "{", "# c", "; c", "", "  ", "comment",
		"s = {", "t = {", "t* = {", "t =", "t = { x", "t={ ", "\ta = 1", "a = 2", "a* = 3", "b = 4", "b=5 # no comment", "b = \"q \\\"x\\\" \\n\\t\\b\\z\" y", "b = \"open",
		"a b = c", "a = ", "= a", "a", "a  =  x  ", "*a = x", "a*b = x", "b = \"\"", "b = {x", "a\t= \\n",
		"include " + dir + "/inc", "include " + dir + "/open", "includedir " + dir + "/d", "include\t" + dir + "/inc", " include " + dir + "/inc",
		"include " + dir + "/bad", "include " + dir + "/none", "includefoo", "include",
	}
	// Until 1.22 a final marker meant less within one file.
	if err := os.WriteFile(dir+"/probe", []byte("[s]*\n[s]\na = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if o.ask(t, dir+"/probe", "s", "a") != "" {
		t.Log("MIT's library is older than 1.22: final markers are not compared")
		lines = slices.DeleteFunc(lines, func(l string) bool { return strings.Contains(l, "*") })
		if err := os.WriteFile(dir+"/inc", []byte("ignored\n[s]\n\ta = inc\n[t]\n\tb = inc\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/d/1", []byte("[s]\n\ta = d1\n\tt = {\n\tb = d1\n\t}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	line := rapid.SampledFrom(lines)
	paths := [][]string{{"s", "a"}, {"s", "b"}, {"t", "a"}, {"t", "b"}, {"s", "t", "a"}, {"s", "t", "b"}, {"t", "t", "b"}, {"s", "s", "a"}, {" s", "a"}, {"s", "t", "t", "a"}, {"s", "t"}}
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		var names []string
		for i := range rapid.IntRange(1, 3).Draw(t, "files") {
			lines := rapid.SliceOfN(line, 0, 12).Draw(t, "lines")
			if rapid.IntRange(0, 3).Draw(t, "start") > 0 {
				lines = append([]string{"[s]"}, lines...)
			}
			name := fmt.Sprintf("%s/%d-%d", dir, n, i) // MIT's library remembers files by name
			if err := os.WriteFile(name, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			names = append(names, name, dir+"/missing")
		}
		for _, path := range paths {
			got, want := answer(names, path...), o.ask(t, strings.Join(names, ":"), path...)
			if got != want && !(got == "!" && strings.HasPrefix(want, "!")) {
				t.Fatalf("%q: %q, MIT %q", path, got, want)
			}
		}
	})
}

func FuzzLoad(f *testing.F) {
	f.Add(full)
	f.Add("[a]\nb = {\nc = {\n}*\n}\n[a]*\nx* = \"\\")
	f.Add("module x\n[libdefaults]\npermitted_enctypes = -aes +DEFAULT\nclockskew = 1-2:3:4\ndefault_ccache_name = %{%{}}\n")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "include") {
			return // the fuzzer is not to read around
		}
		c := new(Config)
		r := reader{root: &node{section: true}, conf: c}
		err := r.parse("krb5.conf", text)
		if err == nil {
			c.roots = append(c.roots, r.root)
			err = c.settings()
		}
		if err != nil {
			if !strings.Contains(err.Error(), "krb5.conf:") {
				t.Fatalf("error without a place: %v", err)
			}
			return
		}
		c.DomainRealm(text)
		c.Capath("A", "B")
		c.AuthToLocalNames(c.DefaultRealm)
		if len(c.PermittedEnctypes) == 0 {
			t.Fatal("nothing is permitted")
		}
	})
}

// TestRequestedEnctypes: what the AS and the TGS are asked for, in which order, and that it is
// never more than what is permitted.
func TestRequestedEnctypes(t *testing.T) {
	for _, tt := range []struct {
		lines    string
		tkt, tgs []etype.ID
		warning  string
	}{
		{"", []etype.ID{18, 17, 20, 19}, []etype.ID{18, 17, 20, 19}, ""},
		{"permitted_enctypes = aes128-cts aes256-cts", []etype.ID{17, 18}, []etype.ID{17, 18}, ""},
		{"default_tkt_enctypes = aes128-cts,aes256-sha2", []etype.ID{17, 20}, []etype.ID{18, 17, 20, 19}, ""},
		{"default_tgs_enctypes = aes256-sha2 DEFAULT -aes128-sha2", []etype.ID{18, 17, 20, 19}, []etype.ID{20, 18, 17}, ""},
		{"permitted_enctypes = aes256-cts aes256-sha2\ndefault_tgs_enctypes = aes", []etype.ID{18, 20}, []etype.ID{18, 20}, ""},
		{"default_tgs_enctypes = rc4-hmac aes256-cts", []etype.ID{18, 17, 20, 19}, []etype.ID{18}, ""},
		{"allow_rc4 = true\ndefault_tgs_enctypes = rc4-hmac aes256-cts", []etype.ID{18, 17, 20, 19, 23}, []etype.ID{23, 18}, ""},
		{"default_tkt_enctypes = aes256-cts nonsense", []etype.ID{18}, []etype.ID{18, 17, 20, 19},
			`:2: default_tkt_enctypes: unknown encryption type "nonsense" is ignored`},
		{"default_tkt_enctypes = rc4-hmac", []etype.ID{}, []etype.ID{18, 17, 20, 19},
			`:2: default_tkt_enctypes = "rc4-hmac" has no type that permitted_enctypes permits: no ticket can be asked for`},
		{"default_tgs_enctypes = des-cbc-crc", []etype.ID{18, 17, 20, 19}, []etype.ID{}, `:2: default_tgs_enctypes = "des-cbc-crc" has no type`},
	} {
		c := mustLoad(t, "[libdefaults]\n"+tt.lines+"\n")
		for _, list := range []struct {
			what      string
			got, want []etype.ID
		}{{"tkt", c.TktEnctypes, tt.tkt}, {"tgs", c.TGSEnctypes, tt.tgs}} {
			got := only(list.got, 16, 17, 18, 19, 20, 23, 24)
			if list.got == nil || !slices.Equal(got, list.want) {
				t.Errorf("%q: %s %v, want %v", tt.lines, list.what, list.got, list.want)
			}
		}
		if got := strings.Join(c.Warnings, "\n"); tt.warning == "" && got != "" || !strings.Contains(got, tt.warning) {
			t.Errorf("%q: warnings %q, want %q", tt.lines, c.Warnings, tt.warning)
		}
	}
}
