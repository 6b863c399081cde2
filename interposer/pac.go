package interposer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// GroupSIDs returns the groups of an initiator that a domain controller has written into its ticket,
// as "S-1-5-21-3623811015-3361044348-30300820-513": the primary group, the other groups of the
// account's domain, those of other domains, and those of the domain that this service is in, as far
// as they are enabled. It is for Active Directory, FreeIPA and Samba, where a group's SID stays the
// same when the group is renamed. Compare them, and use the slice as you like: it is the caller's.
//
// Among them are SIDs that say how the account came here, such as S-1-18-1 for one that has proven
// itself to the domain controller. The account's own SID is not among them.
//
// Without a PAC whose signature the daemon has verified there are no groups to rely on, and the error
// says so. A PAC that cannot be read is an error too, so an account never seems to be in fewer groups
// than it is.
func (p *Peer) GroupSIDs() ([]string, error) {
	if p == nil {
		return nil, errors.New("gssproxy: groups: there is no peer, and so no PAC")
	}
	i := slices.IndexFunc(p.Attributes, func(a Attribute) bool { return a.Name == PAC })
	switch {
	case i < 0:
		return nil, fmt.Errorf("gssproxy: groups of %v: its ticket has no PAC: a KDC that is no domain controller writes none", p)
	case !p.Attributes[i].Authenticated:
		return nil, fmt.Errorf("gssproxy: groups of %v: the signature of its PAC was not verified, so what it says is not to be relied on", p)
	}
	groups, err := pacGroups(p.Attributes[i].Value)
	if err != nil {
		return nil, fmt.Errorf("gssproxy: groups of %v: the PAC cannot be read: %w", p, err)
	}
	return groups, nil
}

// pacLogonInfo is the type of the buffer that has a KERB_VALIDATION_INFO (MS-PAC section 2.4).
const pacLogonInfo = 1

// pacGroups finds the one buffer of that type in the table with which a PAC begins (MS-PAC section
// 2.3), and returns the groups in it.
func pacGroups(pac []byte) ([]string, error) {
	const header, entry = 8, 16
	if len(pac) < header {
		return nil, errors.New("it is shorter than its header")
	}
	n := uint64(binary.LittleEndian.Uint32(pac))
	if n > uint64(len(pac)-header)/entry {
		return nil, fmt.Errorf("there is no room for its %d buffers", n)
	}
	var logon []byte
	for table := pac[header : header+n*entry]; len(table) > 0; table = table[entry:] {
		if binary.LittleEndian.Uint32(table) != pacLogonInfo {
			continue
		}
		size, offset := uint64(binary.LittleEndian.Uint32(table[4:])), binary.LittleEndian.Uint64(table[8:])
		switch {
		case logon != nil:
			return nil, errors.New("it has two buffers of logon information")
		case offset > uint64(len(pac)) || size > uint64(len(pac))-offset:
			return nil, errors.New("its logon information lies outside it")
		}
		logon = pac[offset : offset+size : offset+size]
	}
	if logon == nil {
		return nil, errors.New("it has no logon information")
	}
	return logonGroups(logon)
}

// Bits of KERB_VALIDATION_INFO's UserFlags, without which the lists are not valid, and of the
// Attributes of a group.
const (
	logonExtraSIDs      = 0x20
	logonResourceGroups = 0x200
	groupEnabled        = 4
)

// logonGroups returns the groups in a KERB_VALIDATION_INFO (MS-PAC section 2.5), which is in NDR:
//
//	type serialization, version 1 (MS-RPCE section 2.2.6):
//	 0   1  version, 1
//	 1   1  byte order, 0x10: little-endian
//	 2   2  length of this header, 8
//	 4   4  filler
//	 8   4  length of what follows the second header
//	12   4  filler
//	16   4  pointer, not 0; then what it points to:
//	     48  six times
//	     48  six strings
//	      4  two counts of logons
//	     16  UserId, PrimaryGroupId, GroupCount, pointer to the groups
//	     20  UserFlags, session key
//	     16  two strings
//	      4  pointer to the domain's SID
//	     40  account control and failed logons
//	     20  SidCount, pointer to the extra SIDs, pointer to the resource groups' domain's SID,
//	         ResourceGroupCount, pointer to the resource groups
//	what the pointers point to, in their order
func logonGroups(b []byte) ([]string, error) {
	if len(b) < 16 || b[0] != 1 || b[1] != 0x10 || binary.LittleEndian.Uint16(b[2:]) != 8 {
		return nil, errors.New("its logon information is not in NDR")
	}
	size := binary.LittleEndian.Uint32(b[8:])
	b = b[16:]
	if uint64(size) > uint64(len(b)) {
		return nil, errors.New("its logon information is cut off")
	}
	r := ndr{b: b[:size]}
	if r.uint32() == 0 {
		return nil, errors.New("its logon information is empty")
	}
	r.take(48)
	var names [6]stringHead
	for i := range names {
		names[i] = r.stringHead()
	}
	r.take(4)
	user, primary := r.uint32(), r.uint32()
	groups := list{n: r.uint32(), there: r.uint32() != 0}
	flags := r.uint32()
	r.take(16)
	server, domainName := r.stringHead(), r.stringHead()
	hasDomain := r.uint32() != 0
	r.take(40)
	extra := list{n: r.uint32(), there: r.uint32() != 0}
	hasResourceDomain := r.uint32() != 0
	resource := list{n: r.uint32(), there: r.uint32() != 0}

	for _, s := range names {
		r.skipString(s)
	}
	rids := r.memberships(groups)
	r.skipString(server)
	r.skipString(domainName)
	var domain, resourceDomain string
	if hasDomain {
		domain = r.sid()
	}
	extras := r.sids(extra)
	if hasResourceDomain {
		resourceDomain = r.sid()
	}
	resourceRIDs := r.memberships(resource)
	if r.err != nil {
		return nil, r.err
	}

	var sids []string
	seen := map[string]bool{}
	add := func(sid string) {
		if !seen[sid] {
			seen[sid] = true
			sids = append(sids, sid)
		}
	}
	addRIDs := func(domain string, rids []uint32) error {
		if len(rids) > 0 && domain == "" {
			return errors.New("it has groups of a domain without a SID")
		}
		for _, rid := range rids {
			add(domain + "-" + strconv.FormatUint(uint64(rid), 10))
		}
		return nil
	}
	if primary != 0 {
		rids = slices.Insert(rids, 0, primary)
	}
	if err := addRIDs(domain, rids); err != nil {
		return nil, err
	}
	if flags&logonExtraSIDs != 0 {
		if user == 0 && len(extras) > 0 {
			extras = extras[1:] // the account is of another domain, and this is its SID
		}
		for _, e := range extras {
			if e.enabled {
				add(e.sid)
			}
		}
	}
	if flags&logonResourceGroups != 0 {
		if err := addRIDs(resourceDomain, resourceRIDs); err != nil {
			return nil, err
		}
	}
	return sids, nil
}

// ndr reads little-endian NDR (C706 chapter 14) whose parts are all of 4 bytes, except for strings.
// Its methods return zeros after the first error. Lists are made only once what they take is there.
type ndr struct {
	b   []byte
	err error
}

// take returns the next n bytes.
func (r *ndr) take(n uint64) []byte {
	if r.err == nil && n > uint64(len(r.b)) {
		r.err = fmt.Errorf("its logon information ends %d bytes early", n-uint64(len(r.b)))
	}
	if r.err != nil {
		return nil
	}
	taken := r.b[:n]
	r.b = r.b[n:]
	return taken
}

func (r *ndr) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *ndr) fail(text string) {
	if r.err == nil {
		r.err = errors.New(text)
	}
}

// stringHead is an RPC_UNICODE_STRING, as far as it matters: whether there is something behind its
// pointer.
type stringHead bool

func (r *ndr) stringHead() stringHead {
	r.uint32() // the lengths, which are there again
	return r.uint32() != 0
}

// skipString passes over an array of characters of 16 bits: its size, where the part that is sent
// begins, its length. What follows is at a multiple of 4.
func (r *ndr) skipString(there stringHead) {
	if !there {
		return
	}
	r.take(8)
	n := 2 * uint64(r.uint32())
	r.take(n)
	if n%4 != 0 && len(r.b) > 0 { // the last one may lack it
		r.take(2)
	}
}

// list is an array behind a pointer.
type list struct {
	n     uint32
	there bool
}

// begin reads the length that precedes an array, and returns how many elements of some size it has.
func (r *ndr) begin(l list, size uint64) uint32 {
	if !l.there {
		if l.n != 0 {
			r.fail("it has a number of groups, and no groups")
		}
		return 0
	}
	n := r.uint32()
	switch {
	case r.err == nil && n != l.n:
		r.fail("it has two different numbers of groups")
	case r.err == nil && uint64(n)*size > uint64(len(r.b)):
		r.fail("it has fewer groups than it says")
	}
	if r.err != nil {
		return 0
	}
	return n
}

// memberships reads GROUP_MEMBERSHIPs (MS-PAC section 2.2.2): of each the last part of a SID, and
// attributes. Those that are enabled are returned.
func (r *ndr) memberships(l list) []uint32 {
	n := r.begin(l, 8)
	rids := make([]uint32, 0, n+1) // and the primary group
	for range n {
		if rid := r.uint32(); r.uint32()&groupEnabled != 0 {
			rids = append(rids, rid)
		}
	}
	return rids
}

type extraSID struct {
	sid     string
	enabled bool
}

// sids reads KERB_SID_AND_ATTRIBUTES (MS-PAC section 2.2.1): pointer and attributes of each, then
// the SIDs.
func (r *ndr) sids(l list) []extraSID {
	n := r.begin(l, 8+12) // the SID has 12 at least
	list := make([]extraSID, n)
	for i := range list {
		if r.uint32() == 0 {
			r.fail("it has a group without a SID")
		}
		list[i].enabled = r.uint32()&groupEnabled != 0
	}
	for i := range list {
		list[i].sid = r.sid()
	}
	return list
}

// sid reads an RPC_SID (MS-DTYP section 2.4.2.3) and returns it as text (section 2.4.2.1):
//
//	0  4  count of sub-authorities, which NDR has before the structure
//	4  1  revision, 1
//	5  1  the count again, at most 15
//	6  6  authority, big-endian
//	12    sub-authorities, 4 bytes each
func (r *ndr) sid() string {
	n := r.uint32()
	head := r.take(8)
	if head == nil {
		return ""
	}
	if n > 15 || uint32(head[1]) != n || head[0] != 1 {
		r.fail("it has a SID of another form")
		return ""
	}
	authority := uint64(binary.BigEndian.Uint16(head[2:]))<<32 | uint64(binary.BigEndian.Uint32(head[4:]))
	text := "S-1-"
	if authority>>32 != 0 {
		text += fmt.Sprintf("0x%012X", authority)
	} else {
		text += strconv.FormatUint(authority, 10)
	}
	for range n {
		text += "-" + strconv.FormatUint(uint64(r.uint32()), 10)
	}
	return text
}
