package interposer_test

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jcmturner/gokrb5/v8/pac"
	"github.com/jcmturner/gokrb5/v8/test/testdata"

	"gssproxyd/interposer"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// pacOf returns a PAC with nothing but logon information in it.
func pacOf(logon []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 1)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, 1)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(logon)))
	b = binary.LittleEndian.AppendUint64(b, 24)
	return append(b, logon...)
}

// member returns somebody who has come with a PAC.
func member(pac []byte, verified bool) *interposer.Peer {
	return &interposer.Peer{
		Name:       interposer.Principal("alice@EXAMPLE.TEST"),
		Attributes: []interposer.Attribute{{Name: interposer.PAC, Value: pac, Authenticated: verified}},
	}
}

// TestGroupSIDs reads what domain controllers of Windows have written; the first one is that of
// Microsoft's own description.
func TestGroupSIDs(t *testing.T) {
	domain := func(sid string, rids ...int) (list []string) {
		for _, rid := range rids {
			list = append(list, fmt.Sprintf("%s-%d", sid, rid))
		}
		return list
	}
	for name, tt := range map[string]struct {
		pac  []byte
		want []string
	}{
		"groups of two domains": {pacOf(unhex(t, testdata.MarshaledPAC_Kerb_Validation_Info_MS)), slices.Concat(
			domain("S-1-5-21-397955417-626881126-188441444", 513, 3392609, 2999049, 3322974, 2931095, 3338539, 3354830, 3026599, 3338538, 2931096,
				3392610, 3342740, 3392630, 3014318, 2937394, 3278870, 3038018, 3322975, 3513546, 2966661, 3338434, 3271401, 3051245, 3271606, 3026603, 3018354),
			domain("S-1-5-21-773533881-1816936887-355810188", 513),
			domain("S-1-5-21-397955417-626881126-188441444", 3101812, 3291368, 3291341, 3322973, 3479105, 3271400, 3283393, 3338537, 3038991, 3037999, 3248111, 3038983),
		)},
		"a whole PAC": {unhex(t, testdata.MarshaledPAC_AD_WIN2K_PAC),
			domain("S-1-5-21-3167651404-3865080224-2280184895", 513, 1108, 1109, 1115, 1116, 1114, 1111)},
		"resource groups": {pacOf(unhex(t, testdata.MarshaledPAC_Kerb_Validation_Info_Trust)), slices.Concat(
			domain("S-1-5-21-2284869408-3503417140-1141177250", 513, 1110, 1109), []string{"S-1-18-1"},
			domain("S-1-5-21-3062750306-1230139592-1973306805", 1107, 1108),
		)},
	} {
		got, err := member(tt.pac, true).GroupSIDs()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// Another reader sees the same groups, all of which are enabled here.
func TestGroupSIDsOfAnother(t *testing.T) {
	for _, text := range []string{
		testdata.MarshaledPAC_Kerb_Validation_Info_MS, testdata.MarshaledPAC_Kerb_Validation_Info, testdata.MarshaledPAC_Kerb_Validation_Info_Trust,
	} {
		var k pac.KerbValidationInfo
		if err := k.Unmarshal(unhex(t, text)); err != nil {
			t.Fatal(err)
		}
		want := k.GetGroupMembershipSIDs()
		got, err := member(pacOf(unhex(t, text)), true).GroupSIDs()
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(want)
		slices.Sort(got)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("-another's +ours:\n%s", d)
		}
	}
}

// Where things are in testdata.MarshaledPAC_Kerb_Validation_Info_Trust, from its beginning.
const (
	trustUser       = 120
	trustPrimary    = 124
	trustGroupCount = 128
	trustGroups     = 132 // pointer
	trustUserFlags  = 136
	trustFirstGroup = 356 // of three: number, attributes
	trustExtra      = 452 // of one: pointer, attributes
	trustExtraSID   = 460
)

// TestGroupSIDsThatCount changes what says whether a group counts.
func TestGroupSIDsThatCount(t *testing.T) {
	const (
		domain   = "S-1-5-21-2284869408-3503417140-1141177250"
		resource = "S-1-5-21-3062750306-1230139592-1973306805"
	)
	all := []string{domain + "-513", domain + "-1110", domain + "-1109", "S-1-18-1", resource + "-1107", resource + "-1108"}
	logon := unhex(t, testdata.MarshaledPAC_Kerb_Validation_Info_Trust)
	word := func(at int) uint32 { return binary.LittleEndian.Uint32(logon[at:]) }
	if word(trustPrimary) != 513 || word(trustUser) != 1106 || word(trustFirstGroup) != 1110 || word(trustUserFlags) != 0x220 || word(trustExtra+4) != 7 {
		t.Fatal(word(trustPrimary), word(trustUser), word(trustFirstGroup), word(trustUserFlags), word(trustExtra+4))
	}
	for name, tt := range map[string]struct {
		at    int
		value uint32
		lack  string // what is no longer there
	}{
		"a disabled group":        {trustFirstGroup + 4, 3, domain + "-1110"},
		"a group to deny only":    {trustFirstGroup + 4, 0x10, domain + "-1110"},
		"a disabled extra SID":    {trustExtra + 4, 0, "S-1-18-1"},
		"no extra SIDs":           {trustUserFlags, 0x200, "S-1-18-1"},
		"the extra SID's account": {trustUser, 0, "S-1-18-1"},
		"no resource groups":      {trustUserFlags, 0x20, resource},
		"no primary group":        {trustPrimary, 0, "none: 513 is among the others"},
	} {
		b := slices.Clone(logon)
		binary.LittleEndian.PutUint32(b[tt.at:], tt.value)
		got, err := member(pacOf(b), true).GroupSIDs()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		want := slices.DeleteFunc(slices.Clone(all), func(sid string) bool { return strings.HasPrefix(sid, tt.lack) })
		slices.Sort(want)
		slices.Sort(got)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// TestNoGroupSIDs is about PACs that say nothing one could rely on.
func TestNoGroupSIDs(t *testing.T) {
	logon := unhex(t, testdata.MarshaledPAC_Kerb_Validation_Info_Trust)
	changed := func(at int, b ...byte) []byte {
		c := slices.Clone(logon)
		copy(c[at:], b)
		return pacOf(c)
	}
	two := slices.Concat(
		[]byte{2, 0, 0, 0, 0, 0, 0, 0},
		[]byte{1, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0},
		[]byte{1, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0},
	)
	for name, tt := range map[string]struct {
		peer *interposer.Peer
		want string
	}{
		"nobody":         {nil, "there is no peer"},
		"no PAC":         {&interposer.Peer{Name: interposer.Principal("alice@EXAMPLE.TEST")}, "alice@EXAMPLE.TEST: its ticket has no PAC"},
		"not verified":   {member(pacOf(logon), false), "was not verified"},
		"empty":          {member(nil, true), "shorter than its header"},
		"many buffers":   {member([]byte{255, 255, 255, 255, 0, 0, 0, 0}, true), "no room"},
		"no logon":       {member(make([]byte, 8), true), "no logon information"},
		"two":            {member(two, true), "two buffers"},
		"outside":        {member(pacOf(logon)[:100], true), "outside"},
		"far outside":    {member(slices.Concat([]byte{1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0}, slices.Repeat([]byte{255}, 8)), true), "outside"},
		"not NDR":        {member(pacOf(nil), true), "not in NDR"},
		"big-endian":     {member(changed(1, 0), true), "not in NDR"},
		"cut off":        {member(pacOf(logon[:200]), true), "cut off"},
		"null":           {member(changed(16, 0, 0, 0, 0), true), "is empty"},
		"fewer groups":   {member(changed(8, (trustFirstGroup+8-16)%256, 1, 0, 0), true), "fewer groups than it says"}, // the length ends in the middle of them
		"a short length": {member(changed(8, 100, 0, 0, 0), true), "ends"},
		"another count":  {member(changed(trustGroupCount, 2), true), "two different numbers"},
		"no groups":      {member(changed(trustGroups, 0, 0, 0, 0), true), "no groups"},
		"a null SID":     {member(changed(trustExtra, 0, 0, 0, 0), true), "without a SID"},
		"a long SID":     {member(changed(trustExtraSID, 16, 0, 0, 0, 1, 16), true), "another form"},
		"a revision":     {member(changed(trustExtraSID+4, 2), true), "another form"},
	} {
		got, err := tt.peer.GroupSIDs()
		if err == nil || got != nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, %v; want an error with %q", name, got, err, tt.want)
		}
	}
	// However much of it is missing at its end, it is an error.
	for n := range len(logon) {
		b := slices.Clone(logon[:n])
		if n >= 16 {
			binary.LittleEndian.PutUint32(b[8:], uint32(n-16))
		}
		got, err := member(pacOf(b), true).GroupSIDs()
		if err == nil && n < len(logon)-8 { // it ends at a multiple of 8
			t.Errorf("%d bytes of %d: %v", n, len(logon), got)
		}
	}
}

// FuzzGroupSIDs has a PAC say what it likes: what comes of it is an error, or no more groups than it
// has room for.
func FuzzGroupSIDs(f *testing.F) {
	for _, text := range []string{
		testdata.MarshaledPAC_Kerb_Validation_Info_MS, testdata.MarshaledPAC_Kerb_Validation_Info, testdata.MarshaledPAC_Kerb_Validation_Info_Trust,
	} {
		f.Add(pacOf(unhex(f, text)))
	}
	f.Add(unhex(f, testdata.MarshaledPAC_AD_WIN2K_PAC))
	f.Fuzz(func(t *testing.T, pac []byte) {
		groups, err := member(pac, true).GroupSIDs()
		if err != nil {
			if groups != nil {
				t.Fatalf("groups beside an error: %v", err)
			}
			return
		}
		if len(groups) > 1+len(pac)/8 {
			t.Fatalf("%d groups in %d bytes", len(groups), len(pac))
		}
		for _, g := range groups {
			if !strings.HasPrefix(g, "S-1-") || len(g) > 200 {
				t.Fatalf("%q", g)
			}
		}
	})
}
