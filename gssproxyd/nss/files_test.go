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
	for text, want := range map[string]nsswitch{
		"":                                       {true, true, true},
		"# passwd: sss\n":                        {true, true, true},
		"passwd: files\ngroup: files\n":          {true, true, true},
		"passwd:files systemd\ngroup: files # x": {true, false, true},
		"passwd: files there systemd\ngroup: files systemd": {true, false, false},
		"passwd: sss files\ngroup: sss files":               {false, false, false},
		"passwd: files [success=continue] sss\n":            {false, false, true},
		"passwd: files [NOTFOUND=return]\n":                 {false, false, true},
		"passwd: compat\ngroup: compat\n":                   {false, false, false},
		"passwd:\ngroup:\n":                                 {false, false, false},
		"group: files\ninitgroups: sss\n":                   {true, true, false},
		"group: sss\ninitgroups: files\n":                   {true, true, true},
	} {
		if got := parseSwitch(text, func(string) bool { return true }); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
	got := parseSwitch("passwd: files systemd\ngroup: files systemd\n", func(string) bool { return false })
	if want := (nsswitch{true, true, true}); got != want {
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
		a, err := fileUser(passwd, test.q)
		if test.want == "" {
			if !errors.Is(err, conf.ErrNoUser) {
				t.Errorf("%v: %+v, %v", test.q, a, err)
			}
			continue
		}
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
	if _, err := fileUser(passwd, question{user, "noid"}); err == nil || errors.Is(err, conf.ErrNoUser) {
		t.Error(err)
	}
	last, err := fileUser(passwd, question{account, "last"})
	if err != nil {
		t.Fatal(err)
	}
	if groups, err := fileGroups(group, last); err != nil || len(groups) != 3001 {
		t.Errorf("last: %d groups, %v", len(groups), err)
	}
	if _, err := fileUser(dir+"/none", question{user, "x"}); err == nil || errors.Is(err, conf.ErrNoUser) {
		t.Error(err)
	}
	if _, err := fileGroups(dir+"/none", last); err == nil {
		t.Error("no file, and groups")
	}
}
