package conf

import (
	"fmt"
	"slices"
	"strings"
)

// Changes says what is different from a former configuration, a line for each option that has
// another value now, with the place it was read at, for each service that has come or gone, and for
// each socket.
func (c *Config) Changes(former *Config) (lines []string) {
	lines = changedOptions("["+DaemonSection+"]", DaemonSection, target{cfg: c}, target{cfg: former}, c.from, former.from)
	var before, now []string // services of both
	for _, s := range former.Services {
		if c.named(s.Name) == nil {
			lines = append(lines, fmt.Sprintf("%s%s: removed (%s)", servicePrefix, s.Name, s.Where))
		} else {
			before = append(before, s.Name)
		}
	}
	for _, s := range c.Services {
		was := former.named(s.Name)
		if was == nil {
			lines = append(lines, fmt.Sprintf("%s%s: added (%s)", servicePrefix, s.Name, s.Where))
			continue
		}
		now = append(now, s.Name)
		lines = append(lines, changedOptions(servicePrefix+s.Name, ServiceSection, target{cfg: c, svc: s}, target{cfg: former, svc: was}, s.from, was.from)...)
	}
	lines = append(lines, c.changedStores(former)...)
	if !slices.Equal(before, now) {
		lines = append(lines, "services: matched in the order "+strings.Join(now, ", ")+", was "+strings.Join(before, ", "))
	}
	for _, change := range []struct {
		in, notIn *Config
		what      string
	}{{c, former, "opened"}, {former, c, "closed"}} {
		for _, path := range change.in.Sockets() {
			if !slices.Contains(change.notIn.Sockets(), path) {
				lines = append(lines, "socket "+path+": "+change.what)
			}
		}
	}
	return lines
}

// changedStores says what is different of the key stores.
func (c *Config) changedStores(former *Config) (lines []string) {
	for _, s := range former.KeyStores {
		if c.KeyStore(s.Name) == nil {
			lines = append(lines, fmt.Sprintf("%s%s: removed (%s)", storePrefix, s.Name, s.Where))
		}
	}
	for _, s := range c.KeyStores {
		if was := former.KeyStore(s.Name); was == nil {
			lines = append(lines, fmt.Sprintf("%s%s: added (%s)", storePrefix, s.Name, s.Where))
		} else {
			lines = append(lines, changedOptions(storePrefix+s.Name, StoreSection, target{cfg: c, store: s}, target{cfg: former, store: was}, s.from, was.from)...)
		}
	}
	return lines
}

// named returns the service of a name, nil if there is none.
func (c *Config) named(name string) *Service {
	i := slices.IndexFunc(c.Services, func(s *Service) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	return c.Services[i]
}

// changedOptions says which options of a section have other values.
func changedOptions(about, section string, now, before target, from, was origins) (lines []string) {
	say := func(what, value string, at origins, key string, i int) {
		line := fmt.Sprintf("%s: %s%s = %s", about, what, key, value)
		if i < len(at[key]) {
			line += " (" + at[key][i].String() + ")"
		}
		lines = append(lines, line)
	}
	for i := range Options {
		o := &Options[i]
		if o.Section != section || o.Instead != "" {
			continue
		}
		values, old := o.get(now), o.get(before)
		switch {
		case slices.Equal(values, old):
		case o.Repeat:
			for j, v := range values {
				if !slices.Contains(old, v) {
					say("", v, from, o.Key, j)
				}
			}
			for j, v := range old {
				if !slices.Contains(values, v) {
					say("no longer ", v, was, o.Key, j)
				}
			}
			if same := func(v string) bool { return slices.Contains(old, v) }; len(values) == len(old) && !slices.ContainsFunc(values, func(v string) bool { return !same(v) }) {
				lines = append(lines, fmt.Sprintf("%s: %s in another order", about, o.Key))
			}
		case len(values) == 0:
			say("no longer ", strings.Join(old, " "), was, o.Key, 0)
		default:
			say("", strings.Join(values, " "), from, o.Key, 0)
			if len(old) > 0 {
				lines[len(lines)-1] += ", was " + strings.Join(old, " ")
			}
		}
	}
	return lines
}
