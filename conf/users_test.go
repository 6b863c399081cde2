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
