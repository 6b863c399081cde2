package nss

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gssproxyd/conf"
)

func TestSwitch(t *testing.T) {
	all, first, none := rank{true, true}, rank{true, false}, rank{}
	for text, want := range map[string]nsswitch{
		"":                                       {all, all, true},
		"# passwd: sss\n":                        {all, all, true},
		"passwd: files\ngroup: files\n":          {all, all, true},
		"passwd:files systemd\ngroup: files # x": {first, all, true},
		"passwd: files there systemd\ngroup: files systemd": {first, first, false},
		"passwd: sss files\ngroup: sss files":               {none, none, false},
		"passwd: files [success=continue] sss\n":            {none, all, true},
		"passwd: files [NOTFOUND=return]\n":                 {none, all, true},
		"group: files [SUCCESS=merge] systemd\n":            {all, none, false},
		"group: files[SUCCESS=merge] systemd\n":             {all, none, false},
		"passwd: compat\ngroup: compat\n":                   {none, none, false},
		"passwd:\ngroup:\n":                                 {none, none, false},
		"group: files\ninitgroups: sss\n":                   {all, all, false},
		"group: sss\ninitgroups: files\n":                   {all, none, true},
	} {
		if got := parseSwitch(text, func(string) bool { return true }); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
	got := parseSwitch("passwd: files systemd\ngroup: files systemd\n", func(string) bool { return false })
	if want := (nsswitch{all, all, true}); got != want {
		t.Errorf("without systemd's module: %+v", got)
	}
}

func TestFileEntries(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	passwd := put("passwd", "# alice:x:1:1::/:\nroot:x:0:0:root:/root:/bin/sh\nalice:x:1000:100:Alice:/home/alice:/bin/bash\n"+
		"alice:x:2000:200::/:\n+nis:x:3:3::/:\nbroken\nshort:x:5\nnoid:x:-1:5::/:\n 1000:x:77:77::/: \nlast:x:9:9::/:")
	var many strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&many, "g%d:x:%d:last\n", i, 1000+i)
	}
	group := put("group", "root:x:0:\nusers:x:100:alice,bob\nstaff:x:50:bob,alice\nmalice:x:51:malice\ndouble:x:50:alice\n+:::alice\nodd:x:1\nlong:x:60:"+
		strings.Repeat("somebody,", 20000)+"alice\n"+many.String())
	for _, test := range []struct {
		q      question
		want   string
		groups []uint32
	}{
		{question{account, "alice"}, "alice 1000 100", []uint32{100, 50, 50, 60}},
		{question{uid, "1000"}, "alice 1000 100", nil},
		{question{user, "1000"}, "1000 77 77", nil},
		{question{account, "root"}, "root 0 0", []uint32{0}},
		{question{account, "malice"}, "", nil},
		{question{user, "+nis"}, "", nil},
		{question{user, "short"}, "", nil},
		{question{user, "# alice"}, "", nil},
	} {
		line, err := fileEntry(passwd, test.q)
		if test.want == "" {
			if !errors.Is(err, errNoEntry) {
				t.Errorf("%v: %q, %v", test.q, line, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%v: %v", test.q, err)
			continue
		}
		a, err := parsePasswd(line)
		if got := fmt.Sprint(a.Name, " ", a.UID, " ", a.GID); err != nil || got != test.want {
			t.Errorf("%v: %s, %v", test.q, got, err)
		}
		if test.q.kind != account {
			continue
		}
		if groups, err := fileGroups(group, a); err != nil || !slices.Equal(groups, test.groups) {
			t.Errorf("%v: groups %v, %v", test.q, groups, err)
		}
	}
	line, err := fileEntry(passwd, question{account, "last"})
	if err != nil {
		t.Fatal(err)
	}
	last, err := parsePasswd(line)
	if err != nil {
		t.Fatal(err)
	}
	if groups, err := fileGroups(group, last); err != nil || len(groups) != 3001 {
		t.Errorf("last: %d groups, %v", len(groups), err)
	}
	if _, err := fileEntry(dir+"/none", question{user, "x"}); err == nil || errors.Is(err, errNoEntry) {
		t.Error(err)
	}
	if _, err := fileGroups(dir+"/none", last); err == nil {
		t.Error("no file, and groups")
	}
}

// What the files of /etc say when they are all that counts: entries that are no good are no absence.
func TestFilesOnly(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"nsswitch.conf": "passwd: files\ngroup: files\n",
		"passwd":        "root:x:0:0:root:/root:/bin/sh\nnoid:x:-1:5::/:\n",
		"group": "# wheel:x:1:\nroot:x:0:\nwheel:x:10:alice,bob\nwheel:x:11:\n+nis:x:3:\nbroken\nshort:x\nnoid:x:-1:\nlast id:x:4294967295:\n" +
			"alone:x:12\n 1000:x:77: \nlong:x:60:" + strings.Repeat("somebody,", 20000) + "alice\nlast:x:9:",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s := &sources{etc: dir, getent: "/nowhere/getent"}
	for name, gid := range map[string]uint32{"root": 0, "wheel": 10, "alone": 12, "1000": 77, "long": 60, "last": 9} {
		a, err := s.lookUp(t.Context(), question{group, name})
		if err != nil || a.Name != name || a.GID != gid || a.UID != noID || a.Groups != nil {
			t.Errorf("group %s: %+v, %v", name, a, err)
		}
	}
	for _, name := range []string{"77", "10", "+nis", "broken", "short", "# wheel", "alice", ""} {
		if a, err := s.lookUp(t.Context(), question{group, name}); !errors.Is(err, conf.ErrNoGroup) || errors.Is(err, conf.ErrNoUser) || a.Name != "" {
			t.Errorf("group %q: %+v, %v", name, a, err)
		}
	}
	for _, q := range []question{{group, "noid"}, {group, "last id"}, {user, "noid"}} {
		if a, err := s.lookUp(t.Context(), q); err == nil || isAbsent(err) || !strings.Contains(err.Error(), "is no uid or gid") {
			t.Errorf("%v: %+v, %v", q, a, err)
		}
	}
	for _, key := range []string{"wheel", "nobody-here"} {
		if a, err := s.lookUp(t.Context(), question{user, key}); !errors.Is(err, conf.ErrNoUser) || errors.Is(err, conf.ErrNoGroup) {
			t.Errorf("user %s: %+v, %v", key, a, err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "group")); err != nil {
		t.Fatal(err)
	}
	if a, err := s.lookUp(t.Context(), question{group, "wheel"}); err == nil || isAbsent(err) {
		t.Errorf("without the file: %+v, %v", a, err)
	}
}
