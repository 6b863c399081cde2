package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

// diskRow is a line of the table in docs/on-disk.md about the state directory: the file, and what is
// behind the last two bars.
var diskRow = regexp.MustCompile("(?m)^\\| `STATE/([^`]+)` \\|.*\\| ([^|]+) \\| (0[0-7]{3}) \\|$")

// onDisk are the files that docs/on-disk.md says are in the state directory, with their modes.
func onDisk() (modes map[string]string, err error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "on-disk.md"))
	if err != nil {
		return nil, err
	}
	modes = map[string]string{}
	for _, m := range diskRow.FindAllStringSubmatch(string(page), -1) {
		if m[2] != "the daemon's user" {
			return nil, fmt.Errorf("docs/on-disk.md: %s is %s: the state directory is the daemon's user's", m[1], m[2])
		}
		modes[m[1]] = m[3]
	}
	if len(modes) == 0 {
		return nil, errors.New("docs/on-disk.md has no line about the state directory")
	}
	return modes, nil
}

// scanState looks for keys in all that our daemon has in its state directory, and for what
// docs/on-disk.md does not know.
func (d *Daemon) scanState() error {
	modes, err := onDisk()
	if err != nil {
		return err
	}
	state := filepath.Join(d.Options.Dir, "state")
	return filepath.WalkDir(state, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it was renamed just now
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(state, path)
		known := false
		for pattern, mode := range modes {
			if ok, _ := filepath.Match(pattern, name); ok {
				known = true
				if got := fmt.Sprintf("%#04o", info.Mode().Perm()); got != mode {
					return fmt.Errorf("%s has mode %s; docs/on-disk.md says %s", path, got, mode)
				}
			}
		}
		if !known {
			return fmt.Errorf("%s: docs/on-disk.md does not know that file", path)
		}
		if uid := info.Sys().(*syscall.Stat_t).Uid; uid != d.Options.Becomes.UID {
			return fmt.Errorf("%s is uid %d's; docs/on-disk.md says the daemon's user, uid %d", path, uid, d.Options.Becomes.UID)
		}
		if strings.HasSuffix(name, "handle.key") || strings.HasPrefix(name, ".handle.key.") {
			return nil // what it is for
		}
		return d.realm.scanFile(path, d.scanned)
	})
}
