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

	"gssproxyd/conf"
)

// nsswitch is what of nsswitch.conf makes it needless to ask anybody else.
type nsswitch struct {
	passwdStartsWithFiles bool // who is found in the file is so, whatever comes behind
	passwdIsFiles         bool
	groupIsFiles          bool
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
			sources[strings.TrimSpace(database)] = strings.Fields(list)
		}
	}
	of := func(databases ...string) []string {
		for _, d := range databases {
			if list, ok := sources[d]; ok {
				return slices.DeleteFunc(list, func(s string) bool { return s == "systemd" && !has(s) })
			}
		}
		return []string{"files"}
	}
	files := []string{"files"}
	passwd := of("passwd")
	return nsswitch{
		// An action in brackets behind it may let the search go on.
		passwdStartsWithFiles: len(passwd) > 0 && passwd[0] == "files" && (len(passwd) == 1 || passwd[1][0] != '['),
		passwdIsFiles:         slices.Equal(passwd, files),
		groupIsFiles:          slices.Equal(of("initgroups", "group"), files), // all sources count
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

// fileUser returns the entry that q asks for of a file like /etc/passwd.
func fileUser(path string, q question) (Account, error) {
	column := 0
	if q.kind == uid {
		column = 2
	}
	found := ""
	err := eachEntry(path, func(line string) bool {
		if fields := strings.SplitN(line, ":", 4); len(fields) == 4 && fields[column] == q.key {
			found = line
		}
		return found == ""
	})
	switch {
	case err != nil:
		return Account{}, err
	case found == "":
		return Account{}, conf.ErrNoUser
	}
	return parsePasswd(found)
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
