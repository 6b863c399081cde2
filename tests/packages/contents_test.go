package packages

import (
	"bytes"
	"debug/elf"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gssproxyd/tests/lab"
)

// files are those of each package, with their modes, but for documents. Those that begin with the
// name of a kind are in the packages of that kind only.
var files = map[string]map[string]string{
	"gssproxyd": {
		"/usr/sbin/gssproxyd":                                 "-rwxr-xr-x",
		"/usr/lib/systemd/system/gssproxyd.service":           "-rw-r--r--",
		"/usr/lib/systemd/system/gssproxyd-fs.service":        "-rw-r--r--",
		"/usr/lib/sysusers.d/gssproxyd.conf":                  "-rw-r--r--",
		"/usr/lib/tmpfiles.d/gssproxyd.conf":                  "-rw-r--r--",
		"/usr/lib/systemd/user/gssproxyd-user.service":        "-rw-r--r--",
		"/usr/lib/systemd/user/gssproxyd-user.socket":         "-rw-r--r--",
		"/usr/share/gssproxyd/99-root.conf":                   "-rw-r--r--",
		"/usr/share/man/man8/gssproxyd.8.gz":                  "-rw-r--r--",
		"/usr/share/man/man5/gssproxyd.conf.5.gz":             "-rw-r--r--",
		"/usr/share/man/man5/gssproxyd-fs.5.gz":               "-rw-r--r--",
		"/usr/share/bash-completion/completions/gssproxyd":    "-rw-r--r--",
		"/usr/share/fish/vendor_completions.d/gssproxyd.fish": "-rw-r--r--",
		"deb /usr/share/zsh/vendor-completions/_gssproxyd":    "-rw-r--r--",
		"rpm /usr/share/zsh/site-functions/_gssproxyd":        "-rw-r--r--",
		"deb /etc/apparmor.d/usr.sbin.gssproxyd":              "-rw-r--r--",
	},
	"gssproxyd-mech": {
		"/etc/gss/mech.d/zz-gssproxyd.conf":          "-rw-r--r--",
		"/usr/share/man/man8/gssproxyd-mech.8.gz":    "-rw-r--r--",
		"deb /usr/lib/TRIPLET/gss/gssproxyd_mech.so": "-rw-r--r--",
		"rpm /usr/lib64/gss/gssproxyd_mech.so":       "-rwxr-xr-x",
	},
	"keystored": {
		"/usr/sbin/keystored":                                 "-rwxr-xr-x",
		"/usr/lib/systemd/system/keystored.service":           "-rw-r--r--",
		"/usr/lib/sysusers.d/keystored.conf":                  "-rw-r--r--",
		"/usr/lib/tmpfiles.d/keystored.conf":                  "-rw-r--r--",
		"/usr/share/man/man8/keystored.8.gz":                  "-rw-r--r--",
		"/usr/share/man/man5/keystored.conf.5.gz":             "-rw-r--r--",
		"/usr/share/bash-completion/completions/keystored":    "-rw-r--r--",
		"/usr/share/fish/vendor_completions.d/keystored.fish": "-rw-r--r--",
		"deb /usr/share/zsh/vendor-completions/_keystored":    "-rw-r--r--",
		"rpm /usr/share/zsh/site-functions/_keystored":        "-rw-r--r--",
	},
}

// listing returns the files of a package with their modes and owners; directories and documents are
// left out.
func listing(t *testing.T, pkg, kind string) map[string]string {
	t.Helper()
	var out string
	if kind == "deb" {
		out = output(t, "dpkg-deb", "-c", file(t, pkg+"_*.deb"))
	} else {
		out = output(t, "rpm", "-qplv", file(t, pkg+"-[0-9]*.rpm"))
	}
	found := map[string]string{}
	for line := range strings.Lines(out) {
		words := strings.Fields(line)
		mode, owner := words[0], words[1]
		var name string
		if kind == "deb" {
			name = strings.TrimPrefix(words[5], ".")
		} else {
			owner, name = words[2]+"/"+words[3], words[8]
		}
		if owner != "root/root" {
			t.Errorf("%s, %s: %s is %s's", pkg, kind, name, owner)
		}
		if mode[0] == 'd' || strings.HasPrefix(name, "/usr/share/doc/") {
			continue
		}
		found[name] = mode
	}
	return found
}

func TestContents(t *testing.T) {
	triplet := strings.TrimSpace(output(t, "cc", "-print-multiarch"))
	for pkg, want := range files {
		for _, kind := range []string{"deb", "rpm"} {
			here := map[string]string{}
			for name, mode := range want {
				k, path, only := strings.Cut(name, " ")
				switch {
				case !only:
					here[name] = mode
				case k == kind:
					here[strings.ReplaceAll(path, "TRIPLET", triplet)] = mode
				}
			}
			if diff := cmp.Diff(here, listing(t, pkg, kind)); diff != "" {
				t.Errorf("%s, %s (-want +got):\n%s", pkg, kind, diff)
			}
		}
	}
}

// What users notice comes with the program.
func TestChanges(t *testing.T) {
	for _, name := range []string{"gssproxyd", "keystored"} {
		changes := "/usr/share/doc/" + name + "/CHANGELOG.md\n"
		if out := output(t, "dpkg-deb", "-c", file(t, name+"_*.deb")); !strings.Contains(out, changes) {
			t.Errorf("deb: no %s in\n%s", changes, out)
		}
		if out := output(t, "rpm", "-qpl", file(t, name+"-[0-9]*.rpm")); !strings.Contains(out, changes) {
			t.Errorf("rpm: no %s in\n%s", changes, out)
		}
	}
}

// What the packages say of each other and of the C project's, which they go beside.
func TestRelations(t *testing.T) {
	field := func(pkg, name string) string {
		return strings.TrimSpace(output(t, "dpkg-deb", "-f", file(t, pkg+"_*.deb"), name))
	}
	query := func(pkg, what string) []string {
		return strings.Split(strings.TrimSpace(output(t, "rpm", "-qp", "--"+what, file(t, pkg+"-[0-9]*.rpm"))), "\n")
	}
	if got := field("gssproxyd", "Provides"); got != "gssproxy (= 0.9.2), gss-proxy" {
		t.Errorf("deb provides %s", got)
	}
	if got := query("gssproxyd", "provides"); !slices.Contains(got, "gssproxy = 0.9.2") {
		t.Errorf("rpm provides %q", got)
	}
	for pkg := range files {
		for _, name := range []string{"Conflicts", "Breaks", "Replaces"} {
			if got := field(pkg, name); got != "" {
				t.Errorf("%s: %s: %s", pkg, name, got)
			}
		}
		for _, what := range []string{"conflicts", "obsoletes"} {
			if got := query(pkg, what); got[0] != "" {
				t.Errorf("%s: %s %q", pkg, what, got)
			}
		}
	}
	// dpkg asks, and deletes at a purge, what is listed here.
	if got := output(t, "dpkg-deb", "-I", file(t, "gssproxyd_*.deb"), "conffiles"); got != "/etc/apparmor.d/usr.sbin.gssproxyd\n" {
		t.Errorf("dpkg's configuration files: %s", got)
	}
	for _, name := range []string{"gssproxyd", "keystored"} {
		version := strings.TrimSpace(output(t, filepath.Join(unpacked(t, name), "usr/sbin", name), "--version"))
		if got := field(name, "Version"); got != strings.ReplaceAll(version, "-", "~") {
			t.Errorf("the package is %s, the program in it %s", got, version)
		}
	}
}

// unpacked is a directory with the files of a deb.
func unpacked(t *testing.T, pkg string) string {
	t.Helper()
	dir := t.TempDir()
	output(t, "dpkg-deb", "-x", file(t, pkg+"_*.deb"), dir)
	return dir
}

// The plugin needs no library and no version of one that its package does not require.
func TestPluginRequires(t *testing.T) {
	dir := unpacked(t, "gssproxyd-mech")
	names, err := filepath.Glob(dir + "/usr/lib/*/gss/gssproxyd_mech.so")
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	plugin, err := elf.Open(names[0])
	check(t, err)
	defer plugin.Close()
	depends := output(t, "dpkg-deb", "-f", file(t, "gssproxyd-mech_*.deb"), "Depends")
	packages := map[string]string{
		"libc.so.6": "libc6", "libgssapi_krb5.so.2": "libgssapi-krb5-2", "libkrb5.so.3": "libkrb5-3",
	}
	libraries, err := plugin.ImportedLibraries()
	check(t, err)
	if want := slices.Sorted(maps.Keys(packages)); !slices.Equal(slices.Sorted(slices.Values(libraries)), want) {
		t.Errorf("it needs %q, its package requires %q", libraries, want)
	}
	for _, pkg := range packages {
		if !strings.Contains(depends, pkg+" (>=") {
			t.Errorf("it does not depend on %s: %s", pkg, depends)
		}
	}
	symbols, err := plugin.ImportedSymbols()
	check(t, err)
	newest := 0
	for _, s := range symbols {
		if minor, ok := strings.CutPrefix(s.Version, "GLIBC_2."); ok {
			minor, _, _ = strings.Cut(minor, ".")
			n, err := strconv.Atoi(minor)
			check(t, err)
			newest = max(newest, n)
		}
	}
	libc := "libc6 (>= 2." + strconv.Itoa(newest) + ")"
	glibc := "glibc >= 2." + strconv.Itoa(newest)
	if requires := output(t, "rpm", "-qp", "--requires", file(t, "gssproxyd-mech-[0-9]*.rpm")); !strings.Contains(depends, libc) ||
		!strings.Contains(requires, glibc) {
		t.Errorf("it needs %s, its packages require %s and %s", glibc, depends, requires)
	}
}

// One commit gives one set of packages, to the byte, in whatever directory and surroundings.
func TestReproducible(t *testing.T) {
	file(t, "gssproxyd_*.deb") // the first build
	dir := t.TempDir()
	check(t, build(filepath.Join(dir, "a-directory-with-another-name"), filepath.Join(dir, "out"), "TZ=Asia/Tokyo", "LC_ALL=C.UTF-8"))
	first, err := os.ReadDir(built)
	check(t, err)
	if len(first) != 6 {
		t.Errorf("%d files were built: %v", len(first), first)
	}
	for _, e := range first {
		a, err := os.ReadFile(filepath.Join(built, e.Name()))
		check(t, err)
		b, err := os.ReadFile(filepath.Join(dir, "out", e.Name()))
		check(t, err)
		if !bytes.Equal(a, b) {
			t.Errorf("%s: two builds differ", e.Name())
		}
	}
}

func TestAppArmor(t *testing.T) {
	profile := filepath.Join(unpacked(t, "gssproxyd"), "etc/apparmor.d/usr.sbin.gssproxyd")
	parser, err := exec.LookPath("apparmor_parser")
	if err != nil {
		if parser, err = exec.LookPath("/usr/sbin/apparmor_parser"); err != nil {
			lab.Lacking(t, "apparmor_parser", err)
		}
	}
	if out, err := exec.Command(parser, "-QK", profile).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	// Each profile permits the capabilities that its unit leaves the program, and no others; only the
	// command may mount.
	words := func(text, pattern string) (all []string) {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			all = append(all, strings.Fields(strings.ToLower(strings.ReplaceAll(m[1], "CAP_", "")))...)
		}
		slices.Sort(all)
		return all
	}
	text, err := os.ReadFile(profile)
	check(t, err)
	profiles := regexp.MustCompile(`(?ms)^profile (\S+) .*?^}`).FindAllStringSubmatch(string(text), -1)
	if len(profiles) != 2 {
		t.Fatalf("%d profiles", len(profiles))
	}
	for _, p := range profiles {
		unit, err := os.ReadFile("../../dist/" + p[1] + ".service")
		check(t, err)
		want := words(string(unit), `(?m)^CapabilityBoundingSet=(.*)`)
		if got := words(p[0], `(?m)^  capability (.*),`); len(got) == 0 || !slices.Equal(got, want) {
			t.Errorf("the profile %s permits %q, the unit %q", p[1], got, want)
		}
		if mounts := regexp.MustCompile(`(?m)^  u?mount\b`).MatchString(p[0]); mounts != (p[1] == "gssproxyd-fs") {
			t.Errorf("the profile %s lets mount: %t", p[1], mounts)
		}
	}
}

// The units are ones that systemd understands, gssproxyd's under both of its names, and no less closed
// than they were.
func TestUnits(t *testing.T) {
	for _, u := range []struct {
		program, alias, exposure string // in tenths
	}{
		{"gssproxyd", "gssproxy", "36"},
		{"keystored", "", "18"},
	} {
		root := unpacked(t, u.program)
		units := filepath.Join(root, "usr/lib/systemd/system")
		verify := func(args ...string) {
			t.Helper()
			path, err := exec.LookPath("systemd-analyze")
			if err != nil {
				lab.Lacking(t, "systemd-analyze", err)
			}
			cmd := exec.Command(path, args...)
			cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+units+":", "SYSTEMD_COLORS=0")
			out, err := cmd.CombinedOutput()
			// With both names it cannot conflict with the C daemon's unit, whose name it has, nor begin after it.
			said := regexp.MustCompile(`(?m)^.*Dependency (Conflicts|After)=`+u.alias+`\.service is dropped\.\n`).ReplaceAll(out, nil)
			if err != nil || args[0] == "verify" && len(said) > 0 {
				t.Errorf("%q: %v\n%s", args, err, out)
			}
		}
		name := u.program + ".service"
		unit := filepath.Join(units, name)
		text, err := os.ReadFile(unit)
		check(t, err)
		program := "/usr/sbin/" + u.program
		check(t, os.WriteFile(unit, bytes.ReplaceAll(text, []byte(program), []byte(filepath.Join(root, program))), 0o644))
		verify("verify", "--man=no", name)
		if u.alias != "" {
			check(t, os.Symlink(name, filepath.Join(units, u.alias+".service")))
			verify("verify", "--man=no", u.alias+".service")
		}
		verify("security", "--offline=true", "--threshold="+u.exposure, unit)
	}
}

// Of a store the package has no configuration but an example, and none that dpkg would ask about.
func TestKeystoredExample(t *testing.T) {
	if got := output(t, "dpkg-deb", "-I", file(t, "keystored_*.deb")); strings.Contains(got, "conffiles") {
		t.Errorf("dpkg's view:\n%s", got)
	}
	const example = "/usr/share/doc/keystored/examples/keystored.conf"
	if _, err := os.Stat(filepath.Join(unpacked(t, "keystored"), example)); err != nil {
		t.Error(err)
	}
	if out := output(t, "rpm", "-qpl", file(t, "keystored-[0-9]*.rpm")); !strings.Contains(out, example+"\n") {
		t.Errorf("rpm: no %s in\n%s", example, out)
	}
}

// The shells take the completions, where they are installed, and those complete.
func TestCompletion(t *testing.T) {
	for _, program := range []string{"gssproxyd", "keystored"} {
		root := unpacked(t, program)
		t.Setenv("PATH", filepath.Join(root, "usr/sbin")+":"+os.Getenv("PATH"))
		script := `source "$1"; COMP_WORDS=($2 ch); COMP_CWORD=1 COMP_LINE="$2 ch" COMP_POINT=${#COMP_LINE}
_get_comp_words_by_ref() { cur=ch prev=$program words=($program ch) cword=1; }
program=$2; __start_$2 2>/dev/null; echo "${COMPREPLY[@]}"`
		got := output(t, "bash", "--norc", "-c", script, "bash", filepath.Join(root, "usr/share/bash-completion/completions", program), program)
		if !strings.HasPrefix(got, "check") {
			t.Errorf("%s ch<TAB>: %q", program, got)
		}
		for shell, name := range map[string]string{
			"zsh": "usr/share/zsh/vendor-completions/_" + program, "fish": "usr/share/fish/vendor_completions.d/" + program + ".fish",
		} {
			text, err := fs.ReadFile(os.DirFS(root), name)
			if err != nil || !bytes.Contains(text, []byte(shell+" completion for "+program)) && !bytes.HasPrefix(text, []byte("#compdef "+program)) {
				t.Errorf("%s: %v\n%.80s", name, err, text)
			}
		}
	}
}
