package creds

import (
	"errors"
	"fmt"
	"testing"

	"gssproxyd/conf"
	"gssproxyd/limits"
	"gssproxyd/mech"
)

// lookUp is a Users with one answer to every question.
type lookUp struct{ err error }

func (l lookUp) UID(string) (uint32, error)  { return 1, l.err }
func (l lookUp) Name(uint32) (string, error) { return "1", l.err }
func (l lookUp) GID(string) (uint32, error)  { return 1, l.err }

// That there is no such user or group is left to who asked; that nobody could be asked refuses the
// call.
func TestCallAsks(t *testing.T) {
	for _, test := range []struct {
		err    error
		refuse bool
	}{
		{nil, false},
		{fmt.Errorf("user x: %w", conf.ErrNoUser), false},
		{fmt.Errorf("group x: %w", conf.ErrNoGroup), false},
		{errors.New("the name service is asleep"), true},
		{&limits.Error{What: "questions", UID: 7}, true},
	} {
		users := callerOf(t, &Service{shared: &shared{users: lookUp{test.err}}}, 7).users()
		_, uidErr := users.UID("x")
		_, nameErr := users.Name(1)
		_, gidErr := users.GID("x")
		for i, err := range []error{uidErr, nameErr, gidErr} {
			_, refused := errors.AsType[*mech.Error](err)
			if refused != test.refuse || !refused && err != test.err {
				t.Errorf("question %d, answer %v: %v", i, test.err, err)
			}
		}
	}
}
