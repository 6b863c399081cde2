package rotate

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gssproxyd/mech/krb5/etype"
)

// The KDC gives the new password another salt than it has told, since the account was renamed: the keys
// that were made before are not its own. They are made anew as soon as it is seen, by whoever goes on.
func TestSalt(t *testing.T) {
	for _, at := range []string{"", "after change", "before remake", "after remake"} {
		t.Run(at, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1, etype.AES256SHA1, etype.AES128SHA1)
				w.kdc.kpasswd, w.kdc.salt = true, "EXAMPLE.TESTrenamed"
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go w.live(ctx)
				e, s := w.engine()
				if at != "" {
					killer(s, e, at)
					if err := e.Rotate(ctx, principal, "uid 0", false); !errors.Is(err, errKilled) {
						t.Fatal(err)
					}
					e, _ = w.engine()
				}
				if err := e.Rotate(ctx, principal, "uid 0", false); err != nil {
					t.Fatal(err)
				}
				w.rotated(8)
				if w.kdc.changes != 1 || !strings.Contains(w.history(), "made anew: the KDC has given the password the salt \"EXAMPLE.TESTrenamed\"") {
					t.Errorf("%d changes\n%s", w.kdc.changes, w.history())
				}
				time.Sleep(10 * time.Second)
				w.opens(w.kdc.ticket())
			})
		})
	}
}
