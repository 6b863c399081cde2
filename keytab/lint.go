package keytab

import (
	"bytes"
	"cmp"
	"crypto/subtle"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/openat"
)

// What is unwise about keytab files. Lint opens each file once and judges what is open; what a
// keytab's entries say is judged without I/O, by the type lint.

// Severity is how bad a finding is.
type Severity string

// Severities.
const (
	Severe  Severity = "error"   // calls fail, or the keys are not only root's and the daemon's
	Warning Severity = "warning" // what will fail, or what weakens
	Note    Severity = "note"    // what may well be meant so
)

// FindingID is what kind of a finding it is, one of a closed set.
type FindingID string

// The kinds there are; [Findings] says what each is.
const (
	Missing             FindingID = "missing"
	Unreadable          FindingID = "unreadable"
	Unopened            FindingID = "unopened"
	Malformed           FindingID = "malformed"
	NoEntries           FindingID = "no-entries"
	ReadableByOthers    FindingID = "readable-by-others"
	WritableByOthers    FindingID = "writable-by-others"
	ForeignOwner        FindingID = "foreign-owner"
	ReplaceableByOthers FindingID = "replaceable-by-others"
	BadKey              FindingID = "bad-key"
	ConflictingKeys     FindingID = "conflicting-keys"
	DuplicateEntry      FindingID = "duplicate-entry"
	WeakEnctype         FindingID = "weak-enctype"
	UnsupportedEnctype  FindingID = "unsupported-enctype"
	NoAES256            FindingID = "no-aes256"
	HalfRotation        FindingID = "half-rotation"
	KVNOGap             FindingID = "kvno-gap"
	OldKey              FindingID = "old-key"
	FutureKey           FindingID = "future-key"
	NoTimestamp         FindingID = "no-timestamp"
	SupersededKeys      FindingID = "superseded-keys"
	HoleWithData        FindingID = "hole-with-data"
	TrailingData        FindingID = "trailing-data"
	SharedByUsers       FindingID = "shared-by-users"
	AcceptAndInitiate   FindingID = "accept-and-initiate"
)

// FindingDoc documents a kind of finding.
type FindingDoc struct {
	ID       FindingID
	Severity Severity
	Text     string // what it is about
	Hint     string // what to do
}

// Findings documents every kind of finding, in the order of the documents.
var Findings = []FindingDoc{
	{Missing, Severe, "there is no such file", "put the keytab there, or correct the path"},
	{Unreadable, Severe, "the file cannot be opened, is not a regular one, or changes while it is read", "correct what the text says; as root every keytab can be looked at"},
	{Unopened, Severe, "the file is sealed, and cannot be opened here", "correct what the text says; gssproxyd keytab recipient says whom to seal to"},
	{Malformed, Severe, "the file is no keytab, or one that is damaged", "put a good keytab in its place, by rename"},
	{NoEntries, Severe, "the keytab has no key", "add the service's keys (ktadd of kadmin, ipa-getkeytab, net ads keytab)"},
	{ReadableByOthers, Severe, "others than the owner may read the file", "chmod 600; whoever may have read it has the keys, so change them too"},
	{WritableByOthers, Severe, "others than the owner may write to the file, and so have keys accepted that are theirs", "chmod 600, and see that its keys are the KDC's"},
	{ForeignOwner, Severe, "the file is neither root's nor the daemon's: its owner has the keys without asking the daemon, or can put others there", "chown it to root, and change the keys"},
	{ReplaceableByOthers, Severe, "others can put another file in its place, since they may write in a directory on the way to it", "chown the directory to root and chmod go-w, or keep the keytab elsewhere"},
	{BadKey, Severe, "a key has not the length that its encryption type needs, and is not used", "write the entry again"},
	{ConflictingKeys, Severe, "a principal has two keys of one version and encryption type, of which the first is used", "make a new version, and write it to a new file"},
	{DuplicateEntry, Warning, "an entry is there twice", "remove one (delent of ktutil)"},
	{WeakEnctype, Warning, "the newest version has a key of an encryption type that is broken", "see that the KDC has AES keys for it and issues tickets in them, then remove the entry"},
	{UnsupportedEnctype, Warning, "the newest version has a key of an encryption type that this daemon does not use", "remove the entry; the KDC should have an AES key for it"},
	{NoAES256, Warning, "the newest version has no key of aes256-cts-hmac-sha1-96 or aes256-cts-hmac-sha384-192", "change the keys with one of these types (cpw -e of kadmin; msDS-SupportedEncryptionTypes in Active Directory)"},
	{HalfRotation, Warning, "the newest version lacks an encryption type that the one before has: tickets in it are refused when the KDC issues them", "write all keys of the newest version to the file"},
	{KVNOGap, Warning, "a version between others is missing: tickets of it are refused", "add its keys if they are still to be had; else clients need new tickets, and the versions below can go once theirs have expired"},
	{OldKey, Warning, "the newest version is old", "change the keys; keep the former ones in the file until tickets of theirs have expired"},
	{FutureKey, Warning, "an entry says that it will be written in the future", "correct this host's clock, or that of who wrote the file"},
	{NoTimestamp, Note, "an entry does not say when it was written, so its age is not known", "nothing, unless its age matters"},
	{SupersededKeys, Note, "former versions are still there long after the newest was written", "gssproxyd keytabs says which are still in use; remove the others"},
	{HoleWithData, Warning, "where an entry was removed there is still something: a key, maybe", "copy the keytab (rkt and wkt of ktutil) and put the copy in its place; change the keys if the file got about"},
	{TrailingData, Warning, "something follows the end of the keytab, and is not read: an entry that was not written to the end, maybe", "copy the keytab (rkt and wkt of ktutil) and put the copy in its place"},
	{SharedByUsers, Warning, "services of several users have the same keytab: programs of the one can accept for the other", "give each service a keytab with its own principal"},
	{AcceptAndInitiate, Note, "the keytab serves to accept and to initiate: what initiates does so as the very principal that accepts", "initiate as a principal of its own, with a client_keytab of its own"},
}

// Doc returns what is documented of a kind.
func (id FindingID) Doc() FindingDoc {
	i := slices.IndexFunc(Findings, func(d FindingDoc) bool { return d.ID == id })
	return Findings[i]
}

// Finding is one thing that is unwise about a keytab. What does not apply is zero.
type Finding struct {
	ID        FindingID `json:"id"`
	Severity  Severity  `json:"severity"`
	Principal string    `json:"principal,omitempty"`
	KVNO      uint32    `json:"kvno,omitempty"`
	Text      string    `json:"text"` // what is so, without file, principal and version
	Hint      string    `json:"hint"` // what to do
}

// Report is what Lint has to say of a file.
type Report struct {
	File       string            `json:"file"`
	Principals []PrincipalReport `json:"principals"`
	Findings   []Finding         `json:"findings"`
}

// PrincipalReport is what there is of a principal.
type PrincipalReport struct {
	Principal string          `json:"principal"`
	Versions  []VersionReport `json:"versions"`
}

// VersionReport is what there is of one version of a principal's keys.
type VersionReport struct {
	KVNO     uint32     `json:"kvno"`
	Enctypes []string   `json:"enctypes"`
	Written  *time.Time `json:"written,omitempty"` // nil: not known
}

// Use says that a service has a keytab.
type Use struct {
	Keytab   string // name, as Open takes it
	Service  string
	EUID     uint32 // of the service
	Initiate bool   // it is to initiate with, and else to accept
	Optional bool   // it need not be there
}

// LintOptions say what Lint takes for unwise.
type LintOptions struct {
	Now       time.Time
	OlderThan time.Duration // how long keys are good for
	Uses      []Use
	Reader    // whose Owners may have all keytabs
}

// slack is how far in the future an entry may have been written without a word.
const slack = 24 * time.Hour

// supersededFor is how long former versions are there without a word after the newest was written;
// hardly a ticket can be renewed for longer.
const supersededFor = 30 * 24 * time.Hour

// Lint looks at keytab files, of names as Open takes them, at each path once.
func Lint(names []string, o LintOptions) []Report {
	uses := make(map[fileID][]Use)
	for _, u := range o.Uses {
		if s, err := parseName(u.Keytab); err == nil {
			if st, err := statFile(s.path); err == nil {
				uses[st.id()] = append(uses[st.id()], u)
			}
		}
	}
	reports := make([]Report, 0, len(names))
	seen := make(map[string]bool)
	for _, name := range names {
		l := lint{o: o, alike: make(map[FindingID]int), Report: Report{File: name, Principals: []PrincipalReport{}, Findings: []Finding{}}}
		s, err := parseName(name)
		if seen[s.path] && err == nil {
			continue
		}
		if seen[s.path] = true; err != nil {
			l.find(Unreadable, "", 0, "%v", err)
		} else {
			l.File = s.path
			if id, ok := l.file(s); ok {
				l.used(uses[id])
			}
		}
		l.leftOut()
		reports = append(reports, l.Report)
	}
	return reports
}

// fileID tells files apart, whatever their names.
type fileID struct{ dev, ino uint64 }

func (s stamp) id() fileID { return fileID{s.dev, s.ino} }

// Who has made a file up is not to fill memory and terminal of who looks at it.
const (
	maxAlike  = 100 // findings of one kind in a report
	maxListed = 16  // of things in a text
)

// lint makes one report.
type lint struct {
	o LintOptions
	Report
	alike map[FindingID]int // how many findings there are, also those that are left out
}

// find adds a finding; without a format its text is that of its kind.
func (l *lint) find(id FindingID, principal string, kvno uint32, format string, args ...any) {
	if l.alike[id]++; l.alike[id] <= maxAlike {
		l.add(id, principal, kvno, format, args...)
	}
}

// leftOut says of which kinds there is more than is said.
func (l *lint) leftOut() {
	for _, doc := range Findings {
		if n := l.alike[doc.ID] - maxAlike; n > 0 {
			l.add(doc.ID, "", 0, "there are %d findings more like those above", n)
		}
	}
}

func (l *lint) add(id FindingID, principal string, kvno uint32, format string, args ...any) {
	doc := id.Doc()
	text := doc.Text
	if format != "" {
		text = fmt.Sprintf(format, args...)
	}
	l.Findings = append(l.Findings, Finding{id, doc.Severity, principal, kvno, text, doc.Hint})
}

// mayOwn reports whether a user may have keytabs.
func (l *lint) mayOwn(uid uint32) bool {
	return uid == 0 || uid == uint32(os.Geteuid()) || slices.Contains(l.o.Owners, uid)
}

// file looks at a file, and returns which one it is if it could be opened.
func (l *lint) file(s source) (id fileID, ok bool) {
	path := s.path
	dir, base, err := openat.FindVia(path, l.directory)
	if err != nil {
		l.unopened(path, err)
		return id, false
	}
	defer dir.Close()
	f, err := dir.Open(base, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		l.unopened(path, err)
		return id, false
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		l.unopened(path, err)
		return id, false
	}
	content, stamp, err := readOpen(f)
	defer clear(content)
	if looksSealed(content) {
		s.nameType = &sealed
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG { // of others the mode says little
		l.mode(&st, s.open == nil)
	}
	if err != nil {
		l.find(Unreadable, "", 0, "%v", err)
		return stamp.id(), true
	}
	b, err := l.o.open(s, content)
	defer b.Zero()
	if err != nil {
		l.find(Unopened, "", 0, "%v", err)
	} else {
		l.content(b)
	}
	return stamp.id(), true
}

// unopened is that the file could not be opened, or a directory on the way to it.
func (l *lint) unopened(path string, err error) {
	id := Unreadable
	if errors.Is(err, fs.ErrNotExist) {
		id = Missing
	}
	if pe, ok := errors.AsType[*fs.PathError](err); ok && pe.Path == path {
		err = pe.Err // the path is said already
	}
	l.find(id, "", 0, "%v", err)
}

// directory judges one on the way to the file. In one that is sticky others cannot replace what is
// not theirs; who owns that is looked at next.
func (l *lint) directory(path string, st unix.Stat_t) {
	switch {
	case !l.mayOwn(st.Uid):
		l.find(ReplaceableByOthers, "", 0, "uid %d, who is neither root nor the daemon, can put another file in its place: the directory %s is his", st.Uid, path)
	case st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0:
		l.find(ReplaceableByOthers, "", 0, "others can put another file in its place: the directory %s has mode %04o", path, st.Mode&0o7777)
	}
}

// mode judges a regular file's owner and mode. Who can read a sealed one has no keys.
func (l *lint) mode(st *unix.Stat_t, clear bool) {
	switch {
	case l.mayOwn(st.Uid):
	case !clear:
		l.find(ForeignOwner, "", 0, "the file is uid %d's, who could put other keys there; root's is expected, or the daemon's", st.Uid)
	default:
		l.find(ForeignOwner, "", 0, "the file is uid %d's, who has its keys without asking the daemon; root's is expected, or the daemon's", st.Uid)
	}
	for _, may := range []struct {
		id   FindingID
		word string
		bits uint32
	}{{ReadableByOthers, "read", 0o044}, {WritableByOthers, "write to", 0o022}} {
		who := fmt.Sprintf("group %d", st.Gid)
		if st.Mode&may.bits&0o007 != 0 {
			who = "everybody"
		}
		if st.Mode&may.bits != 0 && (clear || may.id != ReadableByOthers) {
			l.find(may.id, "", 0, "%s may %s the file: its mode is %04o, and 0600 is expected", who, may.word, st.Mode&0o7777)
		}
	}
}

// used judges what the configuration does with the file.
func (l *lint) used(uses []Use) {
	var accept, initiate, all []string
	var users []uint32
	add := func(list *[]string, service string) {
		if !slices.Contains(*list, service) {
			*list = append(*list, service)
		}
	}
	for _, u := range uses {
		if u.Initiate {
			add(&initiate, u.Service)
		} else {
			add(&accept, u.Service)
		}
		add(&all, u.Service)
		if !slices.Contains(users, u.EUID) {
			users = append(users, u.EUID)
		}
	}
	if len(users) > 1 {
		l.find(SharedByUsers, "", 0, "services of %d users have this keytab (%s): programs of the one can accept for the other", len(users), strings.Join(all, ", "))
	}
	if len(accept) > 0 && len(initiate) > 0 {
		l.find(AcceptAndInitiate, "", 0, "it is the keytab of %s and the client_keytab of %s", strings.Join(accept, ", "), strings.Join(initiate, ", "))
	}
}

// content judges the bytes of a file.
func (l *lint) content(content []byte) {
	entries, err := parse(content, func(offset int, b []byte, last bool) {
		data := len(bytes.Trim(b, "\x00")) > 0
		switch {
		case data && last:
			l.find(TrailingData, "", 0, "%d bytes follow the end of the keytab at byte %d, and are not read", len(b), offset)
		case data:
			l.find(HoleWithData, "", 0, "the hole of %d bytes at byte %d, where an entry was removed, is not empty", len(b), offset)
		}
	})
	if err != nil {
		l.find(Malformed, "", 0, "%v", err)
		return
	}
	if len(entries) == 0 {
		l.find(NoEntries, "", 0, "")
	}
	byName := make(map[string][]*Entry)
	var names []string
	for i := range entries {
		e := &entries[i]
		if byName[e.Principal] == nil {
			names = append(names, e.Principal)
		}
		byName[e.Principal] = append(byName[e.Principal], e)
	}
	for _, name := range names {
		l.principal(wire.Shown(name), byName[name])
	}
}

// version is what one principal has of one version.
type version struct {
	slot
	entries []*Entry
}

// types are those that there are keys of, each once, in their order.
func (v *version) types() (list []etype.ID, has map[etype.ID]bool) {
	has = make(map[etype.ID]bool)
	for _, e := range v.entries {
		if !has[e.Enctype] {
			has[e.Enctype] = true
			list = append(list, e.Enctype)
		}
	}
	return list, has
}

// principal judges the entries of one principal.
func (l *lint) principal(name string, entries []*Entry) {
	byKVNO := make(map[uint32]*version)
	for _, e := range entries {
		v := byKVNO[e.KVNO]
		if v == nil {
			v = &version{slot: slot{kvno: e.KVNO}}
			byKVNO[e.KVNO] = v
		}
		v.entries = append(v.entries, e)
		v.timestamp = max(v.timestamp, e.Timestamp)
	}
	kvnos := slices.Sorted(maps.Keys(byKVNO))
	newest, former := newestOf(byKVNO)
	report := PrincipalReport{Principal: name}
	for _, kvno := range kvnos {
		v := byKVNO[kvno]
		r := VersionReport{KVNO: kvno}
		for _, e := range v.entries {
			r.Enctypes = append(r.Enctypes, enctypeName(e.Enctype))
		}
		if v.timestamp != 0 {
			t := time.Unix(int64(v.timestamp), 0).UTC()
			r.Written = &t
		}
		report.Versions = append(report.Versions, r)
		l.keys(name, v)
	}
	l.Principals = append(l.Principals, report)

	l.enctypes(name, newest, former)
	l.gaps(name, newest, kvnos)
	l.age(name, newest, kvnos)
}

// newestOf returns the newest version and the one before it, nil if there is none.
func newestOf(all map[uint32]*version) (newest, former *version) {
	for _, kvno := range slices.Sorted(maps.Keys(all)) {
		switch v := all[kvno]; {
		case newest == nil || v.newer(&newest.slot):
			newest, former = v, newest
		case former == nil || v.newer(&former.slot):
			former = v
		}
	}
	return newest, former
}

// keys judges the keys of one version by themselves and against each other.
func (l *lint) keys(name string, v *version) {
	type state struct {
		first           *Entry
		same, different int
	}
	seen := make(map[etype.ID]*state)
	for _, e := range v.entries {
		if want := e.Enctype.KeySize(); want != 0 && len(e.Key) != want {
			l.find(BadKey, name, v.kvno, "the key of %s at byte %d has %d bytes, expected %d; it is not used", enctypeName(e.Enctype), e.Offset, len(e.Key), want)
		}
		s := seen[e.Enctype]
		switch {
		case s == nil:
			seen[e.Enctype] = &state{first: e}
		case subtle.ConstantTimeCompare(s.first.Key, e.Key) == 1:
			s.same++
		default:
			s.different++
		}
	}
	for _, et := range slices.Sorted(maps.Keys(seen)) {
		if n := seen[et].different; n > 0 {
			l.find(ConflictingKeys, name, v.kvno, "%s: another key follows the first one (%d entries more), which alone is used", enctypeName(et), n)
		}
		if n := seen[et].same; n > 0 {
			l.find(DuplicateEntry, name, v.kvno, "%s: the entry is there %d times", enctypeName(et), n+1)
		}
	}
}

// enctypes judges which types of keys the newest version has, and which it has no more.
func (l *lint) enctypes(name string, newest, former *version) {
	var weak, unsupported, lost []string
	types, has := newest.types()
	for _, id := range types {
		switch {
		case isWeak(id):
			weak = append(weak, enctypeName(id))
		case !id.Supported():
			unsupported = append(unsupported, enctypeName(id))
		}
	}
	if former != nil {
		types, _ := former.types()
		for _, id := range types {
			if id.Supported() && !isWeak(id) && !has[id] {
				lost = append(lost, enctypeName(id))
			}
		}
	}
	if len(weak) > 0 {
		l.find(WeakEnctype, name, newest.kvno, "there is a key of %s, which is weak", listed(weak))
	}
	if len(unsupported) > 0 {
		l.find(UnsupportedEnctype, name, newest.kvno, "there is a key of %s, which this daemon does not use", listed(unsupported))
	}
	if !has[etype.AES256SHA1] && !has[etype.AES256SHA384] {
		l.find(NoAES256, name, newest.kvno, "there is no key of %s or %s", etype.AES256SHA1, etype.AES256SHA384)
	}
	if len(lost) > 0 {
		l.find(HalfRotation, name, newest.kvno, "version %d has a key of %s, and this one, which is newer, has none", former.kvno, listed(lost))
	}
}

// gaps judges which versions there are; not where numbers of 8 or 16 bits have begun anew.
func (l *lint) gaps(name string, newest *version, kvnos []uint32) {
	if newest.kvno != kvnos[len(kvnos)-1] {
		return
	}
	for i := 1; i < len(kvnos); i++ {
		from, to := kvnos[i-1], kvnos[i]
		switch {
		case from == 0: // any version, to who looks for a key
		case to-from == 2:
			l.find(KVNOGap, name, newest.kvno, "version %d is missing between %d and %d: tickets of it are refused", from+1, from, to)
		case to-from > 2:
			l.find(KVNOGap, name, newest.kvno, "versions %d to %d are missing between %d and %d: tickets of them are refused", from+1, to-1, from, to)
		}
	}
}

// age judges when the newest version was written.
func (l *lint) age(name string, newest *version, kvnos []uint32) {
	if newest.timestamp == 0 {
		l.find(NoTimestamp, name, newest.kvno, "")
		return
	}
	written := time.Unix(int64(newest.timestamp), 0).UTC()
	age := l.o.Now.Sub(written)
	switch {
	case age < -slack:
		l.find(FutureKey, name, newest.kvno, "it says that it was written on %s, which is still to come", written.Format(time.DateOnly))
	case age > l.o.OlderThan:
		l.find(OldKey, name, newest.kvno, "the newest version was written %d days ago, on %s", days(age), written.Format(time.DateOnly))
	}
	if len(kvnos) > 1 && age > supersededFor {
		var former []string
		for _, kvno := range kvnos {
			if kvno != newest.kvno {
				former = append(former, fmt.Sprint(kvno))
			}
		}
		l.find(SupersededKeys, name, newest.kvno, "former versions are still there (%s), %d days after the newest was written", listed(former), days(age))
	}
}

// listed lists things in a text, the first few of many.
func listed(list []string) string {
	if n := len(list) - maxListed; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:maxListed], ", "), n)
	}
	return strings.Join(list, ", ")
}

func days(d time.Duration) int { return int(d / (24 * time.Hour)) }

// olderNames are the types that no package here implements (RFC 3961 section 8).
var olderNames = map[etype.ID]string{
	1: "des-cbc-crc", 2: "des-cbc-md4", 3: "des-cbc-md5", 4: "des-cbc-raw", 5: "des3-cbc-md5", 6: "des3-cbc-raw", 7: "des3-cbc-sha1 (old)", 8: "des-hmac-sha1",
}

func enctypeName(id etype.ID) string { return cmp.Or(olderNames[id], id.String()) }

// isWeak reports whether an encryption type is broken: DES, triple DES and RC4 (RFC 6649, RFC
// 8429).
func isWeak(id etype.ID) bool {
	return olderNames[id] != "" || id == etype.DES3 || id == etype.RC4 || id == etype.RC4Export
}
