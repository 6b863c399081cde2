package rotate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"gssproxyd/keystore"
)

// roll is how the hosts of an entry stand to its pending keys.
type roll struct {
	ready   []string // accept with them
	awaited []string // live, and have not acknowledged
	dead    []string // have neither acknowledged nor been heard of, with since when
}

// roll calls the hosts that have the keys of an entry: those that its policy names, and of those
// that a pattern fits the ones that have acknowledged something of it before. Whom else a pattern
// fits has no use for the entry, or gets the pending keys with its first delivery.
func (e *Engine) roll(ctx context.Context, n *keystore.Entry) (r roll, err error) {
	hosts, err := e.o.Store.Hosts(ctx)
	if err != nil {
		return r, err
	}
	marks, err := e.o.Store.Acknowledged(ctx, n.Principal)
	if err != nil {
		return r, err
	}
	now, since := e.o.Now(), e.o.Store.InTouch()
	if since.IsZero() {
		return r, errOutOfTouch
	}
	if since.Before(e.started) {
		since = e.started
	}
	for _, host := range hosts {
		mark, has := marks[host.Name]
		switch {
		case !n.Policy.Permits(host.Name) || !has && !slices.Contains(n.Policy.Hosts, host.Name):
		case has && mark.Compare(n.Rotation.After) > 0:
			r.ready = append(r.ready, host.Name)
		// Who was not heard of since this instance can hear of hosts had perhaps none to talk to.
		case now.Sub(host.Seen) <= alive || now.Sub(since) <= alive:
			r.awaited = append(r.awaited, host.Name)
		case host.Seen.IsZero():
			r.dead = append(r.dead, host.Name+" (never)")
		default:
			r.dead = append(r.dead, fmt.Sprintf("%s (since %s)", host.Name, host.Seen.UTC().Format(time.RFC3339)))
		}
	}
	return r, nil
}

// errOutOfTouch says that it is not known which hosts live.
var errOutOfTouch = errors.New("this instance is out of touch with the store")

// late reports whether hosts have had the time there is to acknowledge.
func (e *Engine) late(n *keystore.Entry) bool {
	limit := patience
	if n.Rotation.Force {
		limit = forced
	}
	return e.o.Now().Sub(n.Rotation.Begun) >= limit
}
