package rotate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
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
// fits has no use for the entry, or gets the pending keys with its first delivery. A host whose record
// the store refuses gets no keys: it counts as dead.
func (e *Engine) roll(ctx context.Context, n *keystore.Entry) (r roll, err error) {
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
	named := make(map[string]bool, len(n.Policy.Hosts))
	for _, pattern := range n.Policy.Hosts {
		named[pattern] = true // no host is called like a pattern
	}
	hosts := slices.AppendSeq(slices.Collect(maps.Keys(named)), maps.Keys(marks))
	slices.Sort(hosts)
	for _, host := range slices.Compact(hosts) {
		mark, has := marks[host]
		if !named[host] && !n.Policy.Permits(host) {
			continue
		}
		h, err := e.o.Store.Known(host)
		refusal, refused := errors.AsType[*keystore.Refusal](err)
		switch {
		case errors.Is(err, keystore.ErrNoHost):
		case refused:
			r.dead = append(r.dead, fmt.Sprintf("%s (its record is refused: %v)", host, refusal.Reason))
		case err != nil:
			return roll{}, err
		case has && mark.Compare(n.Rotation.After) > 0:
			r.ready = append(r.ready, host)
		// Who was not heard of since this instance can hear of hosts had perhaps none to talk to.
		case now.Sub(h.Seen) <= alive || now.Sub(since) <= alive:
			r.awaited = append(r.awaited, host)
		case h.Seen.IsZero():
			r.dead = append(r.dead, host+" (never)")
		default:
			r.dead = append(r.dead, fmt.Sprintf("%s (since %s)", host, h.Seen.UTC().Format(time.RFC3339)))
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
	return e.o.Now().Sub(e.sight(n).seenBegun) >= limit
}

// some names hosts for people, the first ones of many: an entry has room for so many words.
func some(hosts []string) string {
	if more := len(hosts) - maxNamed; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(hosts[:maxNamed], ", "), more)
	}
	return strings.Join(hosts, ", ")
}

// maxNamed is how many hosts are named at a time.
const maxNamed = 20
