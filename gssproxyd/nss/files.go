package nss

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// nsswitch is what of nsswitch.conf makes it needless to ask anybody else.
type nsswitch struct {
	passwd, group     rank
	initgroupsIsFiles bool
}

// rank is which of the sources of a database its file is.
type rank struct {
	first bool // what is found in the file is so, whatever comes behind
	only  bool
}

// readSwitch reads nsswitch.conf. Without one there are only files.
func readSwitch(etc string) nsswitch {
	text, err := os.ReadFile(filepath.Join(etc, "nsswitch.conf"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nsswitch{}
	}
	return parseSwitch(string(text), installed)
}

// parseSwitch reads the text of nsswitch.conf. has reports whether a module is there: one that is
// not is passed over.
func parseSwitch(text string, has func(module string) bool) nsswitch {
	sources := map[string][]string{}
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		if database, list, ok := strings.Cut(line, ":"); ok {
			sources[strings.TrimSpace(database)] = slices.DeleteFunc(strings.Fields(list), func(s string) bool { return s == "systemd" && !has(s) })
		}
	}
	of := func(databases ...string) []string {
		for _, d := range databases {
			if list, ok := sources[d]; ok {
				return list
			}
		}
		return []string{"files"}
	}
	only := func(list []string) bool { return slices.Equal(list, []string{"files"}) }
	file := func(list []string) rank {
		return rank{
			// An action in brackets behind it may let the search go on.
			first: len(list) > 0 && list[0] == "files" && (len(list) == 1 || list[1][0] != '['),
			only:  only(list),
		}
	}
	return nsswitch{
		passwd:            file(of("passwd")),
		group:             file(of("group")),
		initgroupsIsFiles: only(of("initgroups", "group")), // all sources count
	}
}

// installed reports whether a module of systemd's is in one of the places where distributions put
// it.
func installed(module string) bool {
	for _, dir := range []string{"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/lib/*"} {
		if found, _ := filepath.Glob(dir + "/libnss_" + module + ".so.2"); len(found) > 0 {
			return true
		}
	}
	return false
}

// fileEntry returns the entry that q asks for of a file like /etc/passwd, or /etc/group where members
// may be missing. The error is errNoEntry if there is none.
func fileEntry(path string, q question) (string, error) {
	column, least := 0, 4
	switch q.kind {
	case uid:
		column = 2
	case group:
		least = 3
	}
	found := ""
	err := eachEntry(path, func(line string) bool {
		if fields := strings.SplitN(line, ":", 4); len(fields) >= least && fields[column] == q.key {
			found = line
		}
		return found == ""
	})
	switch {
	case err != nil:
		return "", err
	case found == "":
		return "", errNoEntry
	}
	return found, nil
}

// fileGroups returns the groups of a user by a file like /etc/group, the user's own first.
func fileGroups(path string, a Account) ([]uint32, error) {
	var b strings.Builder
	b.WriteString(a.Name)
	err := eachEntry(path, func(line string) bool {
		fields := strings.Split(line, ":") // name:password:gid:members
		if len(fields) == 4 && slices.Contains(strings.Split(fields[3], ","), a.Name) {
			b.WriteByte(' ')
			b.WriteString(fields[2])
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	return parseGroups(b.String(), a)
}

// eachEntry calls f for the lines of a file that are entries, while it returns true.
func eachEntry(path string, f func(line string) bool) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	for r := bufio.NewReader(file); ; {
		line, err := r.ReadString('\n')
		line = strings.TrimSpace(line)
		if line != "" && !strings.ContainsRune("#+-", rune(line[0])) && !f(line) {
			return nil
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
}
