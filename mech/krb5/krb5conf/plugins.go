package krb5conf

import (
	"slices"
	"strings"
)

// localAuthModules are the modules built into MIT's library that say who is which local user, in
// the order in which it asks them. names and auth_to_local map a principal to a user; default and
// rule serve auth_to_local; k5login and an2ln only say whether a principal may be a given user.
var localAuthModules = []string{"default", "rule", "names", "auth_to_local", "k5login", "an2ln"}

// LocalAuth returns which of MIT's modules say who is which local user, in the order in which they
// are asked: all of default, rule, names, auth_to_local, k5login and an2ln unless [plugins]
// localauth has something else. There disable takes modules away, and enable_only keeps those that
// it names, in its order. A module line replaces the module of its name by a C library, which
// nothing here loads, so that neither is asked; one that is malformed leaves no module at all.
func (c *Config) LocalAuth() []string {
	run := slices.Clone(localAuthModules)
	without := func(name string) {
		run = slices.DeleteFunc(run, func(m string) bool { return m == name })
	}
	for _, module := range c.All("plugins", "localauth", "module") {
		name, _, ok := strings.Cut(module, ":")
		if !ok {
			return nil
		}
		without(name)
	}
	for _, name := range c.All("plugins", "localauth", "disable") {
		without(name)
	}
	only := c.All("plugins", "localauth", "enable_only")
	if only == nil {
		return run
	}
	var kept []string
	for _, name := range only {
		if slices.Contains(run, name) && !slices.Contains(kept, name) {
			kept = append(kept, name)
		}
	}
	return kept
}

// unheeded warns of settings that restrict something in MIT's library, and nothing here.
func (c *Config) unheeded() {
	if n := c.libdefault("noaddresses"); n != nil {
		if v, ok := ParseBool(n.value); ok && !v {
			c.warn("%s: noaddresses = %q has no effect: tickets are good for every address", n.pos, n.value)
		}
	}
	c.checkPlugins()
}

// checkPlugins warns of what [plugins] asks for and does not get.
func (c *Config) checkPlugins() {
	known := slices.Clone(localAuthModules)
	for _, n := range find(c.roots, []string{"plugins", "localauth", "module"}) {
		name, _, ok := strings.Cut(n.value, ":")
		if !ok {
			c.warn("%s: localauth module = %q; expected NAME:PATH: no principal has a local name", n.pos, n.value)
			continue
		}
		known = append(known, name)
		c.warn("%s: localauth module %q is not loaded: modules are C libraries; who is which local user is decided without it", n.pos, n.value)
	}
	for _, key := range []string{"disable", "enable_only"} {
		for _, n := range find(c.roots, []string{"plugins", "localauth", key}) {
			if !slices.Contains(known, n.value) {
				c.warn("%s: localauth %s = %q names no module; expected one name a line, of %s", n.pos, key, n.value, strings.Join(localAuthModules, ", "))
			}
		}
	}
	for _, iface := range []string{"hostrealm", "ccselect", "clpreauth"} {
		for _, key := range []string{"module", "disable", "enable_only"} {
			for _, n := range find(c.roots, []string{"plugins", iface, key}) {
				c.warn("%s: %s %s = %q has no effect", n.pos, iface, key, n.value)
			}
		}
	}
}
