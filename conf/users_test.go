package conf

import (
	"errors"
	"testing"
)

func TestFixedUsers(t *testing.T) {
	f := FixedUsers{"b": 1, "a": 1}
	for range 20 {
		if name, err := f.Name(1); name != "a" || err != nil {
			t.Fatal(name, err)
		}
	}
	if _, err := f.Name(2); !errors.Is(err, ErrNoUser) {
		t.Error(err)
	}
}

func TestFixedGroups(t *testing.T) {
	var users Users = FixedGroups{FixedUsers{"a": 1}, map[string]uint32{"a": 2, "root": 0}}
	for name, want := range map[string]uint32{"a": 2, "root": 0} {
		if gid, err := users.GID(name); gid != want || err != nil {
			t.Errorf("GID(%q) = %d, %v", name, gid, err)
		}
	}
	if uid, err := users.UID("a"); uid != 1 || err != nil {
		t.Error(uid, err)
	}
	if _, err := users.UID("root"); !errors.Is(err, ErrNoUser) {
		t.Error("a group is taken for a user:", err)
	}
	for _, users := range []Users{users, FixedUsers{"b": 1}, FixedUsers(nil)} {
		if _, err := users.GID("b"); !errors.Is(err, ErrNoGroup) || errors.Is(err, ErrNoUser) {
			t.Error("a user is taken for a group:", err)
		}
	}
}
