package conf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"gssproxyd/openat"
	"gssproxyd/rpc/peer"
)

// Source says what to read and how.
type Source struct {
	// File is the main file, Dir the directory of drop-ins. Both empty means MainFile and
	// DropInDir, an empty File MainFile, an empty Dir no drop-ins: what the C daemon makes of its
	// options -c and -C.
	File, Dir string

	// DefaultSocket is the path for services that name none; "" means SocketPath.
	DefaultSocket string

	// Compat turns what the C daemon accepts or ignores without a word into warnings, and reads it
	// as C does.
	Compat bool

	// Users resolves the names in the files; nil knows no names.
	Users Users
}

// Load reads the configuration. The error is an [*Errors] with everything that is wrong; a program
// should print it and exit with status 2, or with another one if it is Temporary.
func Load(src Source) (*Config, error) {
	switch {
	case src.File == "" && src.Dir == "":
		src.File, src.Dir = MainFile, DropInDir
	case src.File == "":
		src.File = MainFile
	}
	r := newReader(src)
	files := r.readFiles()
	return r.interpret(files)
}

// reader is the state of one Load.
type reader struct {
	report
	src   Source
	users Users
	cfg   *Config
	nth   int // files opened so far
}

// file is a file that was read.
type file struct {
	name     string
	sections []section
}

func newReader(src Source) *reader {
	if src.DefaultSocket == "" {
		src.DefaultSocket = SocketPath
	}
	if src.Users == nil {
		src.Users = FixedUsers(nil)
	}
	return &reader{
		report: report{compat: src.Compat},
		src:    src,
		users:  src.Users,
		cfg:    &Config{DefaultSocket: src.DefaultSocket},
	}
}

// dropIn is what the name of a drop-in looks like. Other files of the directory are none of our
// business.
var dropIn = regexp.MustCompile(`^[0-9]{2}-.+\.conf$`)

func (r *reader) readFiles() []file {
	var files []file
	if data, at, err := r.readFile(r.src.File); err != nil {
		r.fail(at, "the configuration file cannot be read: "+withoutPath(err), "the main file is needed even if drop-ins hold all services", "create it, or name another with -c")
	} else {
		files = append(files, file{r.src.File, parse(r.src.File, at.nth, data, &r.report, knownSections)})
	}
	if r.src.Dir == "" {
		return files
	}
	entries, err := os.ReadDir(r.src.Dir)
	if err != nil {
		at := position{file: r.src.Dir, nth: r.nth}
		if !errors.Is(err, fs.ErrNotExist) {
			r.odd(at, "the drop-ins cannot be read: "+withoutPath(err), "a directory is expected", "correct its permissions, or name another with -C", "there are no drop-ins then")
		} else if r.src.Dir != DropInDir {
			r.warn(at, "the directory of drop-ins does not exist", "create it, or name another with -C")
		}
		return files
	}
	for _, e := range entries { // in byte order of their names
		name := filepath.Join(r.src.Dir, e.Name())
		if dropIn.MatchString(e.Name()) {
			if f, ok := r.dropIn(name); ok {
				files = append(files, f)
			}
		} else if why := notDropIn(e.Name()); why != "" && !e.IsDir() && filepath.Clean(name) != filepath.Clean(r.src.File) {
			r.warn(position{file: name, nth: r.nth}, "the file is not read: "+why, "rename it to NN-NAME.conf, NN being two digits, or move it elsewhere")
			r.nth++
		}
	}
	return files
}

// keystoredFile is the configuration of keystored, which is in the same directory.
const keystoredFile = "keystored.conf"

// notDropIn says why a file that seems to be meant as a drop-in is none; "" of others: the main
// file, keystored's, a backup, a keytab, one that another ending takes out of use.
func notDropIn(name string) string {
	base, conf := strings.CutSuffix(name, ".conf")
	numbered := len(name) > 2 && strings.Trim(name[:2], "0123456789") == "" && name[2] == '-'
	switch {
	case name[0] == '.' || name == filepath.Base(MainFile) || name == keystoredFile:
		return ""
	case !conf && strings.EqualFold(filepath.Ext(name), ".conf"):
		return "its name does not end in .conf, in lower case"
	case !conf && numbered && !strings.ContainsAny(name, ".~"):
		return "its name does not end in .conf"
	case !conf:
		return ""
	case numbered && len(base) == 3:
		return "its name has nothing behind the hyphen"
	}
	return "its name does not begin with two digits and a hyphen"
}

// dropIn reads a drop-in. The C daemon leaves out the whole file when there is anything wrong with
// it.
func (r *reader) dropIn(name string) (file, bool) {
	const ignored = "the C daemon ignores the whole file, and so does this one"
	data, at, err := r.readFile(name)
	if err != nil {
		r.odd(at, "the drop-in cannot be read: "+withoutPath(err), "", "correct it, or rename it to something that does not match NN-*.conf", ignored)
		return file{}, false
	}
	var syntax report
	f := file{name: name, sections: parse(name, at.nth, data, &syntax, knownSections)}
	r.warnings = append(r.warnings, syntax.warnings...)
	whole := true
	for _, e := range syntax.errors {
		whole = false
		r.odd(position{e.File, e.nth, e.Line}, e.What, e.Expected, e.Do, ignored)
	}
	sections := slices.Clone(f.sections)
	f.sections = slices.DeleteFunc(f.sections, func(s section) bool {
		if s.name == DaemonSection || strings.HasPrefix(s.name, servicePrefix) || strings.HasPrefix(s.name, storePrefix) {
			return false
		}
		whole = false
		r.unknownSection(s, ignored)
		return true
	})
	if whole || !r.compat {
		return f, true
	}
	for _, s := range sections {
		r.lost(&s, "the C daemon ignores the whole file", "correct what else is wrong with it")
	}
	return file{}, false
}

func (r *reader) readFile(name string) ([]byte, position, error) {
	at := position{file: name, nth: r.nth}
	r.nth++
	data, err := r.report.readFile(at)
	if err == nil {
		r.cfg.Files = append(r.cfg.Files, name)
	}
	return data, at, err
}

// readFile reads the file of a position, and warns if others may write to it.
func (r *report) readFile(at position) ([]byte, error) {
	data, st, err := openat.ReadFile(at.file, maxFile)
	if err != nil {
		return nil, err
	}
	if st.Mode&0o002 != 0 {
		r.warn(at, "everybody may write to the file", "chmod o-w")
	}
	return data, nil
}

// withoutPath is an error without the path that the position already says.
func withoutPath(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err.Error()
	}
	return err.Error()
}

// knownSections says which sections there are.
const knownSections = "[gssproxy], [service/NAME] or [store/NAME] is expected"

// unknownSection reports a section that is none of these; drop-ins, of which C then takes nothing,
// know the first in lower case only.
func (r *reader) unknownSection(s section, asC string) {
	const expected = knownSections
	if s.name == "" {
		r.odd(s.at, "a key before the first section", expected, "put it into a section", asC)
		return
	}
	do := ""
	switch prefix, rest, slash := strings.Cut(s.name, "/"); {
	case slash && nearest(prefix, []string{"service", "store"}) != "":
		do = "did you mean [" + nearest(prefix, []string{"service", "store"}) + "/" + shorten(rest) + "]?"
	case nearest(s.name, []string{DaemonSection}) != "":
		do = "did you mean [" + DaemonSection + "]?"
	default:
		do = "remove it, or write [" + servicePrefix + shorten(s.name) + "] if it is a service"
	}
	r.odd(s.at, fmt.Sprintf("unknown section [%s]", shorten(s.name)), expected, do, asC)
}

// interpret makes the configuration out of what was read.
func (r *reader) interpret(files []file) (*Config, error) {
	c := r.cfg
	r.defaults(target{cfg: c})
	var last position
	for _, s := range r.merge(files) {
		last = s.at
		switch {
		case strings.EqualFold(s.name, DaemonSection):
			c.from = r.apply(target{cfg: c}, s)
			_, level := c.from["debug_level"]
			if at, ok := c.from["debug"]; ok && !level {
				c.from["debug_level"] = at
				if c.debug {
					c.Debug = 1
				}
			}
			if len(c.from["audit"]) == 0 && c.AuditRefuse {
				r.fail(c.from["audit_failure"][0], "audit_failure = refuse has no effect without audit", "the file of the audit log is expected too", "add audit = /FILE, or remove the line")
			}
		case strings.HasPrefix(s.name, servicePrefix):
			r.service(s)
		case strings.HasPrefix(s.name, storePrefix):
			r.keyStore(s)
		default:
			r.unknownSection(*s, "it is ignored")
		}
	}
	r.clashes()
	r.access()
	r.keyStores()
	if c.Ceiling.burstAlone() {
		r.errors = append(r.errors, c.Problem("calls_burst", burstAlone, "", withRate))
	}
	for _, s := range c.Services {
		if s.burstAlone() {
			r.errors = append(r.errors, s.Problem("calls_burst", 0, burstAlone, "", withRate))
		}
		r.hopeless(s)
	}
	if len(c.Services) == 0 && len(r.errors) == 0 {
		r.fail(position{file: r.src.File, nth: last.nth, line: max(last.line, 1)}, "there is no service", "at least one [service/NAME] section is expected", "add one here, or as a drop-in NN-NAME.conf")
	}
	slices.SortStableFunc(r.warnings, inOrder)
	for _, w := range r.warnings {
		c.Warnings = append(c.Warnings, w.String())
	}
	if len(r.errors) == 0 {
		return c, nil
	}
	errs := &Errors{Read: c}
	errs.Add(r.errors...)
	return nil, errs
}

// merge joins sections of one name. Within a file their keys add up; of different files the first
// one counts, and the others are left out whole.
func (r *reader) merge(files []file) []*section {
	var all []*section
	for _, f := range files {
		before := len(all)
		for i := range f.sections {
			s := &f.sections[i]
			j := slices.IndexFunc(all, func(t *section) bool { return strings.EqualFold(s.name, t.name) })
			switch {
			case j < 0:
				all = append(all, s)
			case j < before && r.lost(s, fmt.Sprintf("%v already has [%s], and sections of different files are not merged", all[j].at, s.name), "move it there"):
			case j < before:
				r.warn(s.at, fmt.Sprintf("[%s] is ignored, whole: %v already has it, and sections of different files are not merged", s.name, all[j].at), "move its keys there, or rename it")
			default:
				if s.name != all[j].name {
					r.warn(s.at, fmt.Sprintf("[%s] is the same as [%s] in line %d: names are compared without regard to case", s.name, all[j].name, all[j].at.line), "use one spelling, or another name")
				}
				all[j].entries = append(all[j].entries, s.entries...)
			}
		}
	}
	return all
}

// lost reports the keys of a section that is left out which forbid something, and whether there is
// one: without them more would be permitted than is written.
func (r *reader) lost(s *section, why, do string) (found bool) {
	kind := ServiceSection
	switch {
	case strings.EqualFold(s.name, DaemonSection):
		kind = DaemonSection
	case strings.HasPrefix(s.name, storePrefix):
		kind = StoreSection
	}
	for _, e := range s.entries {
		if o := option(kind, e.key); o != nil && o.ours {
			r.fail(e.at, o.Key+" would be ignored: "+why, "", do)
			found = true
		}
	}
	return found
}

// defaults sets what the table gives as the default of each option of a section.
func (r *reader) defaults(t target) {
	for i := range Options {
		if o := &Options[i]; o.Default != "" && o.Section == t.section() {
			o.set(r, t, value{key: o.Key, text: o.Default})
		}
	}
}

// apply sets the options of a section from its entries and returns where each came from.
func (r *reader) apply(t target, s *section) origins {
	kind := t.section()
	from := origins{}
	for _, e := range s.entries {
		o := option(kind, e.key)
		switch {
		case o == nil && beginsComment(e.key):
			r.odd(e.at, commentIndented, columnZero, removeBlanks, "the C daemon reads a key that it does not know, and ignores it")
		case o == nil && meansOurs(kind, e.key):
			r.fail(e.at, fmt.Sprintf("unknown key %q in [%s]", shorten(e.key), s.name), "", keyHint(kind, e.key))
		case o == nil:
			r.odd(e.at, fmt.Sprintf("unknown key %q in [%s]", shorten(e.key), s.name), "", keyHint(kind, e.key), "it is ignored")
		case o.Instead != "":
			r.fail(e.at, o.Key+" is an old name that is no longer read", "", "write "+strings.Replace(o.Instead, "VALUE", e.value, 1))
		case !o.Repeat && len(from[o.Key]) > 0 && o.ours:
			r.fail(e.at, fmt.Sprintf("%s is there twice: line %d already sets it", o.Key, from[o.Key][0].line), "one line is expected", "remove one of them")
		case !o.Repeat && len(from[o.Key]) > 0:
			r.warn(e.at, fmt.Sprintf("%s is ignored: line %d already sets it, and the first one counts", o.Key, from[o.Key][0].line), "remove one of them")
		case hasComment(e.value) && !r.compat:
			r.fail(e.at, behindValue(o.Key), "a value alone is expected", ownLine)
			from[o.Key] = append(from[o.Key], e.at)
		default:
			n, said := len(o.get(t)), len(r.errors)+len(r.warnings)
			o.set(r, t, value{o.Key, e.value, e.at})
			switch odd := oddBlank(e.value); {
			case len(r.errors)+len(r.warnings) > said:
			case hasComment(e.value):
				r.odd(e.at, behindValue(o.Key), "", ownLine, "it is part of the value, as for the C daemon")
			case odd != 0:
				r.warn(e.at, fmt.Sprintf("%s has the character %U in its value, which looks like a blank and is part of it", o.Key, odd), "remove it")
			}
			if !o.Repeat || len(o.get(t)) > n {
				from[o.Key] = append(from[o.Key], e.at)
			}
		}
	}
	for i := range Options {
		if o := &Options[i]; o.Section == kind && o.Required && len(from[o.Key]) == 0 {
			r.fail(s.at, fmt.Sprintf("[%s] has no %s", s.name, o.Key), "every "+strings.TrimSuffix(kind, "/NAME")+" needs one", "add "+o.Key+" = ...")
		}
	}
	return from
}

func behindValue(key string) string { return key + " has a comment behind its value" }

func option(section, key string) *Option {
	for i := range Options {
		if o := &Options[i]; o.Section == section && strings.EqualFold(o.Key, key) {
			return o
		}
	}
	return nil
}

func keyHint(section, key string) string {
	for _, other := range otherSections(section) {
		if option(other, key) != nil {
			return "it belongs in [" + other + "]"
		}
	}
	if o := meant(section, key); o != nil {
		return "did you mean " + o.Key + "?"
	}
	return "gssproxyd.conf(5) lists the keys"
}

// otherSections are where a key may belong that a section does not have.
func otherSections(section string) []string {
	return slices.DeleteFunc([]string{DaemonSection, ServiceSection, StoreSection}, func(s string) bool { return s == section })
}

// meant is the option of a section that an unknown key was probably meant to be, or nil.
func meant(section, key string) *Option {
	var known []string
	for i := range Options {
		if o := &Options[i]; o.Section == section && o.Instead == "" {
			known = append(known, o.Key)
		}
	}
	return option(section, nearest(key, known))
}

// meansOurs reports whether an unknown key was probably meant to forbid something.
func meansOurs(section, key string) bool {
	for _, other := range otherSections(section) {
		if o := option(other, key); o != nil {
			return o.ours
		}
	}
	o := meant(section, key)
	return o != nil && o.ours
}

func (r *reader) service(s *section) {
	svc := &Service{Name: s.name[len(servicePrefix):], Where: s.at.String(), at: s.at}
	if svc.Name == "" {
		r.odd(s.at, "the service has no name", "[service/NAME] is expected", "name it", "it goes without a name")
	}
	t, before := target{cfg: r.cfg, svc: svc}, len(r.errors)
	r.defaults(t)
	svc.from = r.apply(t, s)
	svc.selinux, _ = parseContext(svc.SELinuxContext)
	// Where it is not known whom a service is for, a clash with another would be made up.
	for _, e := range r.errors[before:] {
		svc.vague = svc.vague || slices.ContainsFunc(matching, func(key string) bool {
			return slices.Contains(svc.from[key], position{e.File, e.nth, e.Line})
		})
	}
	svc.vague = svc.vague || len(svc.from["euid"]) == 0
	// One without mechanisms is dropped, which compat allows.
	if len(svc.Mechs) > 0 || len(r.errors) > before {
		r.cfg.Services = append(r.cfg.Services, svc)
	}
}

// matching are the keys that say whom a service is for: the uid, the socket, and the rules.
var matching = append([]string{"euid", "allow_any_uid", "socket"}, ruleKeys...)

// ruleKeys are those of rules.
var ruleKeys = []string{"program", "program_trusted", "group", "unit", "pod", "container", "apparmor_label", "selinux_context"}

// clashes looks for services that could not be told apart, or only by what their peers choose, and
// for those that are never reached because an earlier one takes all their peers. For each it names the
// first of those.
func (r *reader) clashes() {
	all := r.cfg.Services
	for i, s := range all {
		if r.cfg.forProgram(s.Socket) {
			p := s.Problem("socket", 0, fmt.Sprintf("the socket of [service/%s], %s, is one that program_sockets makes for services without a socket", s.Name, s.Socket),
				"", "remove socket, and tell the service apart by its program; or remove the name from program_sockets")
			r.errors = append(r.errors, p)
		}
		for _, e := range all[:i] {
			if !e.vague && !s.vague && r.cfg.SocketOf(e) == r.cfg.SocketOf(s) && (len(e.Pods) > 0) == (len(s.Pods) > 0) && (r.clash(e, s) || r.alike(e, s)) {
				break
			}
		}
	}
}

// clash reports whether s cannot be told apart from the earlier e on the same socket, or is never
// reached because of it, and says so.
func (r *reader) clash(e, s *Service) bool {
	rules := strings.Join(ruleKeys[:len(ruleKeys)-1], ", ") + " and " + ruleKeys[len(ruleKeys)-1]
	same := e.admits(s) && s.admits(e) && e.sameSELinux(s)
	what, do := "", ""
	switch {
	case same && e.AllowAnyUID:
		what = fmt.Sprintf("[service/%s] is never reached: [service/%s] (%s) comes first, allows any uid, and has the same socket, %s", s.Name, e.Name, e.at, rules)
		do = "put the service that allows any uid last, or give one of them another socket or one of these rules"
	case same && e.EUID == s.EUID:
		what = fmt.Sprintf("[service/%s] and [service/%s] (%s) have the same euid, socket, %s", s.Name, e.Name, e.at, rules)
		do = "give one of them another socket or one of these rules"
	case !same && (e.AllowAnyUID || e.EUID == s.EUID && !s.AllowAnyUID) && e.admits(s) && e.SELinuxContext == "":
		r.warn(s.at, fmt.Sprintf("[service/%s] is never reached: [service/%s] (%s) comes first and matches all its peers", s.Name, e.Name, e.at), "put the more special one first")
		return true
	default:
		return false
	}
	const expected = "services that can be told apart are expected"
	// C compares with the default socket it was built with, whatever -s says.
	if inC := func(s *Service) string { return (&Config{DefaultSocket: SocketPath}).SocketOf(s) }; inC(e) != inC(s) {
		r.odd(s.at, what, expected, do, "the first one gets the peers")
	} else {
		r.fail(s.at, what, expected, do)
	}
	return true
}

// alike warns of services whose peers themselves choose which one they get: of one uid, or of any, they
// are told apart by nothing but the program, which each of their processes may run. Root may have
// all services' keys without that.
func (r *reader) alike(e, s *Service) bool {
	whom := ""
	switch {
	case e.AllowAnyUID && s.AllowAnyUID:
		whom = "any uid"
	case e.EUID == s.EUID && !e.AllowAnyUID && !s.AllowAnyUID && s.EUID != 0:
		whom = fmt.Sprintf("uid %d", s.EUID)
	default:
		return false
	}
	other := func(s *Service) *Service {
		c := *s
		c.Program, c.ProgramTrusted = "", false
		return &c
	}
	if e, s := other(e), other(s); !e.admits(s) || !s.admits(e) || !e.sameSELinux(s) {
		return false
	}
	r.warn(s.at, fmt.Sprintf("[service/%s] and [service/%s] (%v) are both for %s on one socket, and nothing tells them apart but program, which a process chooses: whoever may use one may use the other",
		s.Name, e.Name, e.at, whom), "give each a uid of its own, or another rule, such as unit; this is no boundary otherwise")
	return true
}

// sameSELinux reports whether two services are for the same SELinux context, or both for any.
func (s *Service) sameSELinux(t *Service) bool {
	if s.SELinuxContext == "" || t.SELinuxContext == "" {
		return s.SELinuxContext == t.SELinuxContext
	}
	return s.selinux.equal(t.selinux)
}

// admits reports whether s, but for uid, socket and SELinux context, surely admits every peer that t
// is for.
func (s *Service) admits(t *Service) bool {
	return (s.Program == "" || s.Program == t.Program) && (!s.ProgramTrusted || t.ProgramTrusted) &&
		subset(t.Groups, s.Groups) && subset(t.Units, s.Units) && subset(t.Pods, s.Pods) && subset(t.Containers, s.Containers) &&
		(s.AppArmorLabel == "" || s.AppArmorLabel == t.AppArmorLabel)
}

// subset reports whether who is in one of some is surely in one of others; none means anybody.
func subset[T comparable](some, others []T) bool {
	return len(others) == 0 || len(some) > 0 && !slices.ContainsFunc(some, func(one T) bool { return !slices.Contains(others, one) })
}

// burstAlone reports whether there is a burst of no rate.
func (p *Permission) burstAlone() bool { return p.CallsBurst > 0 && p.CallsPerSecond == 0 }

const (
	burstAlone = "calls_burst limits nothing without calls_per_second in the same section"
	withRate   = "add calls_per_second, or remove the line"
)

// hopeless warns of settings that are good each for itself, and together cannot work.
func (r *reader) hopeless(s *Service) {
	warn := func(key string, n int, what, do string) {
		r.warnings = append(r.warnings, s.Problem(key, n, what, "", do))
	}
	if s.KernelNFSD && !s.vague {
		not := func(key, what, do string) {
			warn(key, 0, fmt.Sprintf("the kernel's NFS server does not get [service/%s], which has kernel_nfsd: %s", s.Name, what), do)
		}
		if path := r.cfg.SocketOf(s); path != kernelSocket && path != "/var"+kernelSocket {
			not("socket", "it connects to "+kernelSocket+" only, and not to "+path, "write socket = "+kernelSocket)
		}
		if s.EUID != 0 && !s.AllowAnyUID {
			not("euid", fmt.Sprintf("it comes as uid 0, and not as %d", s.EUID), "write euid = 0")
		}
		if s.CredUsage == UsageInitiate {
			not("cred_usage", "it only accepts, and cred_usage = initiate forbids that", "write cred_usage = accept")
		}
		if own, _ := os.Executable(); s.Program != "" && s.Program != own {
			not("program", "its program is taken to be the daemon's own, which makes it connect", "remove program")
		}
		if s.Operations != 0 && s.Operations&OpAccept == 0 {
			not("operations", "it only accepts, and operations does not have that", "add accept")
		}
		if s.RequireChannelBindings {
			not("require_channel_bindings", "it has no channel bindings", "remove the line")
		}
		const oneCaller = "calls_per_second holds for the kernel's NFS server as for one user, which calls for the users of all its clients: what is too much of theirs is refused to others among them"
		if s.CallsPerSecond > 0 {
			warn("calls_per_second", 0, oneCaller, "remove the line, unless that is what is meant")
		} else if r.cfg.Ceiling.CallsPerSecond > 0 {
			r.warnings = append(r.warnings, r.cfg.Problem("calls_per_second", oneCaller, "", "set it for each other service instead, unless that is what is meant"))
		}
	}
	if s.ProgramTrusted && s.Program == "" {
		warn("program_trusted", 0, "program_trusted without program admits every program of the system's, shells and interpreters among them, which do what their user says", "write which program, or remove the line")
	}
	if len(s.Pods) > 0 && s.Socket != "" {
		warn("pod", 0, "pods have sockets of their own, so with socket no peer matches", "remove socket, or pod")
	} else if len(s.Pods) > 0 && r.cfg.PodSocket == "" {
		warn("pod", 0, "no pod has a socket without pod_socket in [gssproxy], so no peer matches", "write pod_socket = /run/gssproxyd/csi/register.sock there")
	}
	for i, unit := range s.Units {
		if !strings.ContainsAny(unit, "*?[") && !peer.IsUnit(unit) {
			warn("unit", i, fmt.Sprintf("unit = %s is the whole name of no unit that processes are in, so no peer matches", unit), "write the type behind it, as in "+unit+".service")
		}
	}
	for i, kv := range s.CredStore {
		if kv.Key == "ccache" && s.AllowAnyUID && s.CredUsage != UsageAccept && !kv.Varies() {
			if kind, _ := residual(kv.Value); kind == "FILE" || kind == "DIR" {
				warn("cred_store", i, fmt.Sprintf("cred_store = %v is one cache for all users of [service/%s], which allows any uid: what the daemon writes there for one is refused to the others", kv, s.Name),
					"put %U into its name, as in ccache:FILE:/var/lib/gssproxy/clients/krb5cc_%U")
			}
		}
	}
}

// kernelSocket is where the kernel's NFS server connects to, by way of /var/run.
const kernelSocket = "/run/gssproxy.sock"
