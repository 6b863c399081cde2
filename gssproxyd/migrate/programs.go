package migrate

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// A Line is one of the report. Attend says that somebody should think about it before anything is
// done.
type Line struct {
	Text   string
	Attend bool
}

// describe says of each client what becomes of it when its connection ends.
func describe(all []client) (lines []Line) {
	for _, c := range all {
		switch {
		case c.pid == 0:
			lines = append(lines, Line{Text: count(c.connections, "connection") + " of a process that cannot be seen from here, or of the kernel"})
			continue
		case status(c.pid, "Pid") == "":
			lines = append(lines, Line{fmt.Sprintf("process %d has ended and left %s to its children", c.pid, count(c.connections, "connection")), true})
			continue
		}
		text := fmt.Sprintf("%s holds %s", process(c.pid), count(c.connections, "connection"))
		maps, _ := os.ReadFile(fmt.Sprintf("/proc/%d/maps", c.pid))
		plugin := pluginIn(maps)
		if plugin == "" {
			lines = append(lines, Line{Text: text})
			continue
		}
		pkg, version := packageOf(plugin)
		text += ", with " + plugin
		if pkg != "" {
			text += " of " + pkg + " " + version
		}
		dies := filepath.Base(plugin) == "proxymech.so" && !newer(version) && sigpipeKills(c.pid)
		if dies {
			text += ": SIGPIPE kills it at its next call when the connection has ended; restart it at a time of your own"
		}
		lines = append(lines, Line{text, dies})
	}
	return lines
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// process names a process.
func process(pid int) string {
	text := fmt.Sprintf("process %d", pid)
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil {
		text += " (" + exe + ")"
	}
	return text
}

// pluginIn returns the plugin's path in a /proc/PID/maps, "" if none is loaded.
func pluginIn(maps []byte) string {
	for line := range bytes.Lines(maps) {
		if _, path, ok := bytes.Cut(line, []byte(" /")); ok {
			path := "/" + strings.TrimSuffix(strings.TrimSpace(string(path)), " (deleted)")
			if name := filepath.Base(path); name == "proxymech.so" || name == "gssproxyd_mech.so" {
				return path
			}
		}
	}
	return ""
}

// packageOf returns which package a file is of, as the system's package tool says, "" if none does.
func packageOf(path string) (name, version string) {
	if out, err := exec.Command("dpkg-query", "-S", path).Output(); err == nil {
		owner, _, _ := strings.Cut(string(out), ": ")
		out, err := exec.Command("dpkg-query", "-W", "-f", "${Package} ${Version}", owner).Output()
		if err == nil {
			name, version, _ = strings.Cut(string(out), " ")
		}
		return name, version
	}
	if out, err := exec.Command("rpm", "-qf", "--qf", "%{NAME} %{VERSION}-%{RELEASE}", path).Output(); err == nil {
		name, version, _ = strings.Cut(string(out), " ")
	}
	return name, version
}

// Purged says which files of a configuration go when the C daemon's package is purged: those that
// came with it.
func Purged(files []string) (lines []Line) {
	for _, path := range files {
		if owner, err := exec.Command("dpkg-query", "-S", path).Output(); err == nil && strings.HasPrefix(string(owner), cDaemon.name+": ") {
			lines = append(lines, Line{Text: fmt.Sprintf("%s came with the package %s: apt purge %[2]s takes it away; keep a copy before that", path, cDaemon.name)})
		}
	}
	return lines
}

// newer reports whether a plugin's version is known to be newer than 0.9.1, the last that writes to
// a connection without looking.
func newer(version string) bool {
	if _, rest, ok := strings.Cut(version, ":"); ok { // Debian's epoch
		version = rest
	}
	var v [3]int
	n, _ := fmt.Sscanf(version, "%d.%d.%d", &v[0], &v[1], &v[2])
	return n >= 2 && slices.Compare(v[:], []int{0, 9, 1}) > 0
}

// sigpipeKills reports whether a process neither ignores SIGPIPE nor has a handler for it.
func sigpipeKills(pid int) bool {
	for _, key := range []string{"SigIgn", "SigCgt"} {
		set, err := strconv.ParseUint(status(pid, key), 16, 64)
		if err == nil && set&(1<<(syscall.SIGPIPE-1)) != 0 {
			return false
		}
	}
	return true
}

// Programs describes who is meant to use the daemon: units, and processes that run. What an
// environment says is a hint, and nothing is decided by it.
func Programs() (lines []Line) {
	dirs := filepath.SplitList(os.Getenv("SYSTEMD_UNIT_PATH"))
	if len(dirs) == 0 {
		dirs = []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}
	}
	said := make(map[string]bool)
	for _, dir := range dirs {
		real, err := filepath.EvalSymlinks(dir) // /lib is /usr/lib in most places
		if err != nil || said[real] {
			continue
		}
		said[real] = true
		filepath.WalkDir(real, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil
			}
			unit := filepath.Base(path)
			if of, ok := strings.CutSuffix(filepath.Base(filepath.Dir(path)), ".d"); ok && filepath.Ext(unit) == ".conf" {
				unit = of
			}
			if filepath.Ext(unit) == ".service" {
				lines = append(lines, unitLines(path, unit)...)
			}
			return nil
		})
	}
	for _, pid := range processes() {
		environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		for v := range bytes.SplitSeq(environ, []byte{0}) {
			if value, ok := strings.CutPrefix(string(v), "GSS_USE_PROXY="); ok {
				lines = append(lines, Line{Text: fmt.Sprintf("%s was started with GSS_USE_PROXY=%s", process(pid), value)})
			}
		}
	}
	return lines
}

// unitLines is what a file of a unit says about the daemon.
func unitLines(path, unit string) (lines []Line) {
	each(path, func(at, line string) {
		key, value, _ := strings.Cut(line, "=")
		switch {
		case strings.Contains(line, "GSS_USE_PROXY="):
			lines = append(lines, Line{Text: at + unit + " uses it: " + line})
		case key == "EnvironmentFile":
			each(strings.TrimPrefix(value, "-"), func(at, line string) {
				if strings.HasPrefix(line, "GSS_USE_PROXY=") {
					lines = append(lines, Line{Text: at + unit + " uses it: " + line})
				}
			})
		case slices.Contains([]string{"Requires", "Requisite", "BindsTo", "PartOf"}, key) && slices.Contains(strings.Fields(value), unitC):
			lines = append(lines, Line{at + unit + " is stopped together with " + unitC + ": name " + unitOurs + " there first: " + line, true})
		}
	})
	return lines
}

// each calls f with every line of a file that is no comment, and "file:line: ".
func each(path string, f func(at, line string)) {
	b, _ := os.ReadFile(path)
	s := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; s.Scan(); n++ {
		if line := strings.TrimSpace(s.Text()); line != "" && !strings.ContainsAny(line[:1], "#;") {
			f(fmt.Sprintf("%s:%d: ", path, n), line)
		}
	}
}
