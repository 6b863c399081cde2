package wire

import "gssproxyd/mech/krb5/der"

// What a request for a ticket in somebody else's name has besides (MS-SFU section 2.2):
//
//	PA-S4U-X509-USER ::= SEQUENCE {          -- 130
//	    user-id  [0] S4UUserID,
//	    checksum [1] Checksum                -- of user-id, with the subkey
//	}
//	S4UUserID ::= SEQUENCE {
//	    nonce   [0] UInt32,                  -- the request's
//	    cname   [1] PrincipalName OPTIONAL,
//	    crealm  [2] Realm,
//	    subject-certificate [3] OCTET STRING OPTIONAL, -- passed over here
//	    options [4] BIT STRING OPTIONAL
//	}
//	PA-FOR-USER ::= SEQUENCE {               -- 129, for older KDCs
//	    userName     [0] PrincipalName,
//	    userRealm    [1] Realm,
//	    cksum        [2] Checksum,           -- HMAC-MD5 with the TGT's key, whatever its type
//	    auth-package [3] KerberosString
//	}
//	PA-PAC-OPTIONS ::= SEQUENCE {            -- 167, MS-KILE section 2.2.10
//	    flags [0] KerberosFlags
//	}

// S4UUserID names a user.
type S4UUserID struct {
	Nonce   uint32
	User    Principal // without components when there is no cname
	Options uint32
}

// Append appends the S4UUserID.
func (u *S4UUserID) Append(dst []byte) []byte {
	dst, seq := der.Begin(dst, der.Sequence)
	dst = appendInt(dst, 0, int64(u.Nonce))
	dst = appendName(dst, 1, &u.User)
	dst = appendString(dst, 2, u.User.Realm)
	return der.End(appendFlags(dst, 4, u.Options), seq)
}

// AppendS4UX509User appends a PA-S4U-X509-USER with the encoded S4UUserID id.
func AppendS4UX509User(dst, id []byte, sumType int32, sum []byte) []byte {
	dst, seq := der.Begin(dst, der.Sequence)
	return der.End(appendTypedField(appendRaw(dst, 0, id), 1, sumType, sum), seq)
}

// S4UX509User is a PA-S4U-X509-USER.
type S4UX509User struct {
	S4UUserID
	ID      []byte // the S4UUserID as it came
	SumType int32
	Sum     []byte
}

// Parse reads b.
func (x *S4UX509User) Parse(b []byte) error {
	r := der.NewReader(b)
	seq := r.Enter(der.Sequence)
	f := r.Field(0)
	start := r
	x.ID = start.Raw()
	in := r.Enter(der.Sequence)
	x.Nonce = readUint(&r, 0)
	var user Name
	if r.Has(1) {
		readNameField(&r, 1, &user)
	}
	user.Realm = readString(&r, 2)
	x.User = user.Principal()
	if r.Has(3) {
		readOctets(&r, 3)
	}
	if r.Has(4) {
		x.Options = readFlags(&r, 4)
	}
	r.LeaveOpen(in)
	r.Leave(f)
	x.SumType, x.Sum = readTypedField(&r, 1)
	r.LeaveOpen(seq)
	return end(&r)
}

// AppendForUser appends a PA-FOR-USER.
func AppendForUser(dst []byte, user *Principal, sumType int32, sum []byte, authPackage string) []byte {
	dst, seq := der.Begin(dst, der.Sequence)
	dst = appendName(dst, 0, user)
	dst = appendString(dst, 1, user.Realm)
	dst = appendTypedField(dst, 2, sumType, sum)
	return der.End(appendString(dst, 3, authPackage), seq)
}

// AppendPACOptions appends a PA-PAC-OPTIONS.
func AppendPACOptions(dst []byte, options uint32) []byte {
	dst, seq := der.Begin(dst, der.Sequence)
	return der.End(appendFlags(dst, 0, options), seq)
}

// ParsePACOptions reads a PA-PAC-OPTIONS; 0 if b is none.
func ParsePACOptions(b []byte) (options uint32) {
	r := der.NewReader(b)
	seq := r.Enter(der.Sequence)
	options = readFlags(&r, 0)
	r.LeaveOpen(seq)
	if r.Fault() != 0 {
		return 0
	}
	return options
}
