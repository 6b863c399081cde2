package conf

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestStore(t *testing.T) {
	users := FixedUsers{"alice": 1000, "../root": 1001, "..": 1002, "DOM\\bob": 1003, "nobody": 4294967294}
	for _, c := range []struct {
		value string
		uid   uint32
		want  string // or the error, after !
	}{
		{"FILE:/tmp/krb5cc_%U", 1000, "FILE:/tmp/krb5cc_1000"},
		{"%u", 1000, "alice"},
		{"%U%u%%%U", 1000, "1000alice%1000"},
		{"%%U", 1000, "%U"},                // C: aborts
		{"100%%", 1000, "100%"},            // C: aborts
		{"%U", 4294967294, "4294967294"},   // C: -2
		{"%u", 5, "!uid 5: no such user"},  // C: fails too
		{"%h", 1000, `!"%h" stands for`},   // C: fails too
		{"x%", 1000, `!"%" stands for`},    // C: fails too
		{"%u", 1001, "!cannot be part of"}, // C: puts it into the path
		{"%u", 1002, "!cannot be part of"},
		{"%u", 1003, "DOM\\bob"},
		{"/plain", 5, "/plain"},
	} {
		s := &Service{Name: "a", CredStore: []KeyValue{{"keytab", "/k"}, {"ccache", c.value}, {"rcache", "/r"}}}
		got, err := s.Store(c.uid, users)
		if text, bad := strings.CutPrefix(c.want, "!"); bad {
			if err == nil || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), "service a: cred_store = ccache:") {
				t.Errorf("%s for %d: %v, %v", c.value, c.uid, got, err)
			}
			continue
		}
		if want := []KeyValue{{"keytab", "/k"}, {"ccache", c.want}, {"rcache", "/r"}}; err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s for %d: %v, %v; want %v", c.value, c.uid, got, err, want)
		}
		if s.CredStore[1].Value != c.value {
			t.Errorf("the service was changed to %v", s.CredStore)
		}
	}
	if _, err := (&Service{CredStore: []KeyValue{{"ccache", "%u"}}}).Store(5, users); !errors.Is(err, ErrNoUser) {
		t.Error(err)
	}
}

func TestStoreWithoutSubstitution(t *testing.T) {
	s := &Service{CredStore: []KeyValue{{"keytab", "/k"}}}
	if n := testing.AllocsPerRun(10, func() {
		if got, err := s.Store(1, nil); err != nil || &got[0] != &s.CredStore[0] {
			t.Fatal(got, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if got, err := (&Service{}).Store(1, nil); err != nil || len(got) != 0 {
		t.Error(got, err)
	}
}

// What badSubstitution lets pass, Store can do, and nothing else.
func TestBadSubstitution(t *testing.T) {
	for value, want := range map[string]string{"": "", "%%%U%u": "", "a%b": "%b", "%": "%", "%%%": "%", "%é": "%é", "%U%": "%"} {
		if got := badSubstitution(value); got != want {
			t.Errorf("%q: %q, want %q", value, got, want)
		}
		if _, err := substitute(value, 1000, testUsers); (err != nil) != (want != "") {
			t.Errorf("%q: %v", value, err)
		}
	}
}

// An element that has no effect may hold a password: compat keeps the element, for a store that has
// one is not empty, and not its value.
func TestPasswordsAreNotKept(t *testing.T) {
	dir := write(t, map[string]string{"main.conf": "[service/a]\nmechs = krb5\neuid = 0\n" +
		"cred_store = password:sesame\ncred_store = passwd:sesame\ncred_store = password : sesame\ncred_store = verify:/sesame\n"})
	src := Source{File: dir + "/main.conf", Users: testUsers}
	for _, p := range problems(t, src) {
		if strings.Contains(p, "sesame") {
			t.Error(p)
		}
	}
	src.Compat = true
	c, err := Load(src)
	if err != nil {
		t.Fatal(err)
	}
	if all := fmt.Sprintf("%q %+v", c.Warnings, c.Services[0]) + printed(t, c, true); strings.Contains(all, "sesame") || len(c.Services[0].CredStore) != 4 {
		t.Error(all)
	}
}
