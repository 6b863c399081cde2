package proc

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"gssproxyd/conf"
	"gssproxyd/keytab"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/krb5/localname"
	"gssproxyd/mech/krb5/rcache"
)

// generation is one reading of the configuration: what a reload replaces as a whole. Calls in flight keep the one
// they were matched with.
type generation struct {
	conf     *conf.Config
	krb5     *krb5conf.Config
	services map[*conf.Service]*service
}

// service is a configured service with what its cred_store names, opened.
type service struct {
	*conf.Service
	p          *Procedures
	krb5       *krb5conf.Config
	kdc        *kdc.Client
	memory     *ccache.Memory // tickets that have no cache elsewhere; its own, so that no other service's can push them out
	localNames *localname.Rules
	kcmSocket  string // as krb5.conf has it
	fixed      *store // the store, where it is the same for every caller

	principalMap map[string]string // users by principal, as principal_map has them

	mu     sync.Mutex
	stores map[uint32]*store // by uid, where cred_store has substitutions
	closed bool
}

// store is one opened credential store: cred_store for one target uid, or without one what libkrb5 would use in this
// process's environment.
type store struct {
	keytab       *keytab.Keytab // to accept with, and the service's own; nil if a service that only initiates names none
	keytabNamed  bool           // cred_store names the keytab
	clientKeytab *keytab.Keytab // to initiate with; nil if there is none
	ccache       string         // name of the cache to initiate with; empty keeps tickets in memory
	replay       krb5.ReplayCache
}

func (s *store) close() {
	for _, k := range []*keytab.Keytab{s.keytab, s.clientKeytab} {
		if k != nil {
			k.Close()
		}
	}
}

func (p *Procedures) newGeneration(c *conf.Config, k *krb5conf.Config) (*generation, error) {
	g := &generation{conf: c, krb5: k, services: make(map[*conf.Service]*service, len(c.Services))}
	localNames, client := localname.New(k), &kdc.Client{
		Conf: k, Now: p.now, Log: slog.New(metered{p.log.Handler(), p.limits.Lines}), Timeout: kdcTimeout, Trace: p.trace,
		Admission: newExchanges(p.exchanges, p.now),
	}
	kcmSocket, _ := k.Get("libdefaults", "kcm_socket")
	for _, err := range localNames.Check() {
		p.log.Warn("krb5.conf: a rule for local names does not apply", "error", err)
	}
	var errs []error
	for _, cs := range c.Services {
		s := &service{Service: cs, p: p, krb5: k, kdc: client, localNames: localNames, kcmSocket: kcmSocket}
		if former := p.current.Load().named(cs.Name); former != nil {
			s.memory = former.memory
		} else {
			s.memory = &ccache.Memory{Now: p.now, Payers: memoryPayers{p}}
		}
		g.services[cs] = s
		var err error
		if s.principalMap, err = compilePrincipalMap(cs.PrincipalMap); err != nil {
			errs = append(errs, fmt.Errorf("service %q: %w", cs.Name, err))
			continue
		}
		if slices.ContainsFunc(cs.CredStore, conf.KeyValue.Varies) {
			continue // opened when the first caller comes
		}
		if s.fixed, err = s.open(cs.EUID, p.users); err != nil {
			errs = append(errs, fmt.Errorf("service %q: %w", cs.Name, err))
		}
	}
	if len(errs) > 0 {
		g.close()
		return nil, errors.Join(errs...)
	}
	return g, nil
}

// named returns the service of a name, nil if there is none.
func (g *generation) named(name string) *service {
	if g != nil {
		for _, s := range g.services {
			if s.Name == name {
				return s
			}
		}
	}
	return nil
}

// forget drops the tickets in memory of the services that the next generation has no more, and what was seen of them.
func (g *generation) forget(next *generation) {
	for _, s := range g.services {
		if next.named(s.Name) == nil {
			s.memory.Close()
			s.p.snapshots.clear()
		}
	}
}

func (g *generation) close() {
	for _, s := range g.services {
		s.mu.Lock()
		s.closed = true
		stores := s.stores
		s.stores = nil
		s.mu.Unlock()
		// Not under the lock: a keytab on a file system that hangs takes seconds to close.
		for _, st := range stores {
			st.close()
		}
		if s.fixed != nil {
			s.fixed.close()
		}
	}
}

// Check looks for what Load cannot use of a configuration with a krb5.conf, before anything is opened: names of keytabs
// and caches, and principals. The problems have their lines. The warnings, of krb5.conf, are what Load says to the log.
func Check(c *conf.Config, k *krb5conf.Config) (warnings []string, problems []conf.Problem) {
	for _, err := range localname.New(k).Check() {
		warnings = append(warnings, "krb5.conf: a rule for local names does not apply: "+err.Error())
	}
	bad := func(p conf.Problem) { problems = append(problems, p) }
	for _, s := range c.Services {
		// Substituted for no one in particular: what kind of a name it is does not depend on that.
		elements, err := s.Store(s.EUID, conf.FixedUsers{"user": s.EUID})
		if err != nil {
			continue // with compat only, and said already
		}
		names := storeNames(s, k, elements)
		for i, e := range elements {
			if err := checkName(e.Key, e.Value); err != nil {
				bad(s.Problem("cred_store", i, fmt.Sprintf("cred_store = %v cannot be used", s.CredStore[i]), err.Error(), ""))
			}
			delete(names, e.Key)
		}
		for _, key := range []string{"keytab", "client_keytab", "ccache", "rcache"} {
			if err := checkName(key, names[key]); err != nil {
				bad(s.Problem("", 0, fmt.Sprintf("[service/%s] has no %s in its cred_store, and the default cannot be used", s.Name, key), err.Error(), "correct the environment or krb5.conf"))
			}
		}
		for i := range s.PrincipalMap {
			if _, err := compilePrincipalMap(s.PrincipalMap[i : i+1]); err != nil {
				bad(s.Problem("principal_map", i, err.Error(), "PRINCIPAL@REALM:USER is expected", "write the principal as klist does"))
			}
		}
	}
	return warnings, problems
}

// CheckFiles warns of files that the services name for all their users, and that cannot be used now. A service without a
// keytab that accepts needs the default one. The daemon says the same when it opens them.
func CheckFiles(c *conf.Config, k *krb5conf.Config) (warnings []string) {
	said := make(map[string]bool)
	warn := func(s *conf.Service, key string, n int, setting, name, what, do string) {
		if what != "" && !said[name] {
			said[name] = true
			warnings = append(warnings, s.Problem(key, n, setting+": "+what, "", do).String())
		}
	}
	for _, s := range c.Services {
		if s.Program != "" {
			if _, err := os.Stat(s.Program); errors.Is(err, fs.ErrNotExist) && !strings.Contains(s.Program, " ") {
				warn(s, "program", 0, "program = "+s.Program, s.Program, "there is no such file, so no peer matches", "correct the path, or install the program")
			}
		}
		named := false
		for i, e := range s.CredStore {
			named = named || e.Key == "keytab"
			if e.Varies() {
				continue
			}
			name := strings.ReplaceAll(e.Value, "%%", "%")
			what, do := checkFile(e.Key, name)
			warn(s, "cred_store", i, "cred_store = "+e.String(), name, what, do)
		}
		if !named && s.CredUsage == conf.UsageAccept {
			name := storeNames(s, k, s.CredStore)["keytab"]
			what, do := checkFile("keytab", name)
			warn(s, "", 0, "[service/"+s.Name+"] has no keytab in its cred_store, and the default is "+name, name, what, do)
		}
	}
	return warnings
}

// checkFile returns what is wrong with the file that an element of cred_store names by an absolute path, and what to do.
func checkFile(key, name string) (what, do string) {
	kind, path, ok := strings.Cut(name, ":")
	if !ok || strings.HasPrefix(name, "/") {
		kind, path = "FILE", name
	}
	if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "$`\"'") {
		return "", "" // said already
	}
	switch key {
	case "keytab", "client_keytab":
		switch err := keytab.CheckFile(name); {
		case err == nil, errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0: // another user than the daemon's
		case errors.Is(err, fs.ErrNotExist):
			return "there is no such file", "put the keytab there, or correct the path"
		default:
			return "the keytab cannot be used: " + err.Error(), "put a good keytab there (klist -k lists its keys), or correct the path"
		}
	case "ccache", "rcache":
		if kind != "FILE" && kind != "file2" {
			return "", ""
		}
		if st, err := os.Stat(filepath.Dir(path)); errors.Is(err, fs.ErrNotExist) || err == nil && !st.IsDir() {
			return "there is no directory " + filepath.Dir(path), "make it, for the daemon's user, or correct the path"
		}
		if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
			return "it is not a regular file", "remove it, or correct the path"
		}
	}
	return "", ""
}

// checkName returns what is wrong with a value of cred_store. An empty one is there with compat only, and counts as none.
func checkName(key, name string) (err error) {
	switch {
	case name == "":
	case key == "keytab", key == "client_keytab":
		err = keytab.CheckName(name)
	case key == "ccache":
		err = ccache.CheckName(name)
	case key == "rcache":
		_, err = rcache.Open(name, os.Getenv) // which opens no file
	}
	return err
}

// maxStores bounds the stores a service keeps open for distinct uids; beyond it an arbitrary one makes room.
const maxStores = 1024

// store returns the credential store for a target uid. It opens files only for the first caller with that uid, and no
// other caller waits for that. users says what the uid's name is, where cred_store has it.
func (s *service) store(uid uint32, users conf.Users) (*store, error) {
	if s.fixed != nil {
		return s.fixed, nil
	}
	s.mu.Lock()
	st := s.stores[uid]
	s.mu.Unlock()
	if st != nil {
		return st, nil
	}
	st, err := s.open(uid, users)
	if err != nil {
		return nil, err
	}
	kept, gone := s.keep(uid, st)
	if gone != nil {
		gone.close()
	}
	return kept, nil
}

// keep remembers a store for a uid, unless there is one by now. It returns the one to use, and the one to close.
func (s *service) keep(uid uint32, st *store) (use, gone *store) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if first := s.stores[uid]; first != nil {
		return first, st
	}
	if s.closed {
		// The configuration was replaced while this call ran: serve it, keep nothing. What was read stays readable
		// after Close; only the watching ends.
		return st, st
	}
	if len(s.stores) >= maxStores {
		for other, old := range s.stores {
			gone = old
			delete(s.stores, other)
			break
		}
	}
	if s.stores == nil {
		s.stores = make(map[uint32]*store)
	}
	s.stores[uid] = st
	return st, gone
}

// storeNames returns, by the keys of cred_store, the names of what a store is made of: those that its elements have, the
// last one of a key, and for the rest those that libkrb5 would take in this process's environment.
func storeNames(s *conf.Service, k *krb5conf.Config, elements []conf.KeyValue) map[string]string {
	names := make(map[string]string, len(elements))
	for _, e := range elements {
		names[e.Key] = e.Value
	}
	names["rcache"] = cmp.Or(names["rcache"], rcache.DefaultName(os.Getenv, k.DefaultRcacheName))
	if s.CredUsage != conf.UsageInitiate {
		names["keytab"] = cmp.Or(names["keytab"], os.Getenv("KRB5_KTNAME"), k.DefaultKeytabName)
	}
	if s.CredUsage != conf.UsageAccept && len(elements) == 0 {
		names["client_keytab"] = cmp.Or(os.Getenv("KRB5_CLIENT_KTNAME"), k.DefaultClientKeytabName)
		names["ccache"] = ccache.DefaultName(os.Getenv, k.DefaultCCacheName)
	}
	return names
}

// open opens what cred_store names for a target uid, or the defaults.
func (s *service) open(uid uint32, users conf.Users) (*store, error) {
	elements, err := s.Store(uid, users)
	if err != nil {
		return nil, err
	}
	names := storeNames(s.Service, s.krb5, elements)
	st := &store{ccache: names["ccache"]}
	needed := map[string]bool{}
	for i, e := range elements {
		needed[e.Key] = !s.CredStore[i].Varies() // those of users, and defaults, come when they come
		if e.Key == "keytab" {
			st.keytabNamed = e.Value != ""
		}
	}
	if st.replay, err = s.p.rcaches.open(names["rcache"]); err != nil {
		return nil, err
	}
	for key, kt := range map[string]**keytab.Keytab{"keytab": &st.keytab, "client_keytab": &st.clientKeytab} {
		open := s.p.keytabs.OpenOptional
		if needed[key] {
			open = s.p.keytabs.Open
		}
		if name := names[key]; name != "" {
			if *kt, err = open(name); err != nil {
				st.close()
				return nil, err
			}
		}
	}
	return st, nil
}
