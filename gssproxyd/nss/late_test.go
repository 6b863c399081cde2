package nss

import (
	"context"
	"testing"
	"time"
)

// A question whose time is nearly over has an error for its answer, never an account that nobody
// filled in: that would be root's uid.
func TestLateQuestion(t *testing.T) {
	c, _ := client(t, people, Options{})
	h, err := c.running()
	if err != nil {
		t.Fatal(err)
	}
	for left := time.Duration(0); left < 2*time.Millisecond; left += 10 * time.Microsecond {
		ctx, cancel := context.WithTimeout(t.Context(), left)
		a, err := h.ask(ctx, question{user, "alice"})
		cancel()
		if err == nil && (a.Name != "alice" || a.UID != 1000) {
			t.Fatalf("with %v left: %+v and no error", left, a)
		}
	}
}
