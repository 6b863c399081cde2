package krb5

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// Users tells the name of a uid, for the name types that are a uid.
type Users interface {
	// Name returns it. An error that is a *mech.Error is that of the import; any other says that
	// there is no such user.
	Name(uid uint32) (string, error)
}

const (
	minorBadStringUID = mech.MinorGGSS + 1 // G_BAD_STRING_UID
	minorNoUser       = mech.MinorGGSS + 2 // G_NOUSER
	minorWrongSize    = mech.MinorGGSS + 6 // G_WRONG_SIZE
)

// ImportName makes the mechanism name of an imported one (gss_import_name and
// gss_canonicalize_name): name is as the application gave it, with or without NULs at its end;
// nameType is one of the mech.NT constants, and empty means a principal. Nothing here asks DNS: a
// host name is folded to lower case, qualified by the configured domain when it has no dot, and
// keeps its realm empty, for a referral, unless [domain_realm] knows it. users may be nil, and then
// uids have no names. Errors are *mech.Error, with MIT's status codes.
func ImportName(name []byte, nameType mech.OID, cfg *krb5conf.Config, users Users) (Principal, error) {
	switch nameType {
	case mech.NTAnonymous:
		return wire.Anonymous(), nil
	case mech.NTMachineUID:
		if len(name) != 4 {
			return badName(minorWrongSize, fmt.Sprintf("a machine uid of %d octets; expected 4", len(name)))
		}
		return importUID(binary.NativeEndian.Uint32(name), cfg, users)
	case mech.NTExportName, mech.NTCompositeExport:
		oid, s, err := mech.ParseExportedName(name)
		if err != nil {
			return Principal{}, mech.Errorf(mech.DefectiveToken, 0, reason.BadName, "%v", err)
		}
		if oid != mech.KRB5 {
			return Principal{}, mech.Errorf(mech.BadMech, 0, reason.WrongMech, "exported name of mechanism %v", oid).Of("")
		}
		return importPrincipal(ParsePrincipal(s, cfg.DefaultRealm))
	}

	if len(name) == 0 {
		return badName(0, "the name is empty")
	}
	s := strings.TrimRight(string(name), "\x00")
	if strings.IndexByte(s, 0) >= 0 {
		return badName(0, fmt.Sprintf("NUL octet inside the name %.200q", s))
	}
	switch nameType {
	case "", mech.NTUserName, mech.NTKrb5Principal:
		return importPrincipal(ParsePrincipal(s, cfg.DefaultRealm))
	case mech.NTKrb5Enterprise:
		return importPrincipal(wire.ParseEnterprise(s, cfg.DefaultRealm))
	case mech.NTHostbased, mech.NTHostbasedX:
		service, host := splitHostbased(s)
		if service == "" {
			return badName(0, fmt.Sprintf("%.200q names no service; expected service@host", s))
		}
		return hostbased(service, host, cfg)
	case mech.NTStringUID:
		uid, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return badName(minorBadStringUID, fmt.Sprintf("%.200q is no uid; expected decimal digits", s))
		}
		return importUID(uint32(uid), cfg, users)
	}
	return Principal{}, mech.Errorf(mech.BadNameType, 0, reason.BadNameType, "name type %v", nameType)
}

// splitHostbased takes "service@host" apart. An empty host means that the name has none: an
// acceptor of that name takes the service on any host.
func splitHostbased(s string) (service, host string) {
	service, host, _ = strings.Cut(strings.TrimRight(s, "\x00"), "@")
	return service, host
}

func badName(minor uint32, text string) (Principal, error) {
	return Principal{}, mech.Errorf(mech.BadName, minor, reason.BadName, "%s", text)
}

func importPrincipal(p Principal, err error) (Principal, error) {
	if err != nil {
		return Principal{}, mech.Errorf(mech.Failure, wire.MinorParseMalformed, reason.BadName, "%v", err)
	}
	return p, nil
}

func importUID(uid uint32, cfg *krb5conf.Config, users Users) (Principal, error) {
	if users == nil {
		return badName(minorNoUser, fmt.Sprintf("uid %d: no user database", uid))
	}
	name, err := users.Name(uid)
	if e := (*mech.Error)(nil); errors.As(err, &e) {
		return Principal{}, e // nobody has said that there is no such user
	}
	if err != nil {
		return badName(minorNoUser, fmt.Sprintf("uid %d has no user name: %v", uid, err))
	}
	return importPrincipal(ParsePrincipal(name, cfg.DefaultRealm))
}

// hostbased does what krb5_sname_to_principal does without DNS. The service's host may carry a port
// or instance behind a colon, which is left alone.
func hostbased(service, host string, cfg *krb5conf.Config) (Principal, error) {
	if host == "" {
		h, err := os.Hostname()
		if err != nil {
			return Principal{}, mech.Errorf(mech.Failure, mech.MinorGGSS+9, reason.Internal, "%v", err)
		}
		host = h
	}
	trailer := ""
	if i := strings.IndexByte(host, ':'); i >= 0 && i == strings.LastIndexByte(host, ':') && i+1 < len(host) {
		host, trailer = host[:i], host[i:]
	}
	if cfg.QualifyShortname != "" && !strings.Contains(host, ".") {
		host += "." + cfg.QualifyShortname
	}
	host = strings.TrimSuffix(asciiLower(host), ".")
	return Principal{Realm: cfg.DomainRealm(host), Components: []string{service, host + trailer}, Type: NTSrvHst}, nil
}

// asciiLower folds A to Z only, whatever else a name holds.
func asciiLower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
