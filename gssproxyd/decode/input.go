package decode

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// MaxInput bounds what is looked at.
const MaxInput = 1 << 20

// header is a token with what says that it is one: a header of HTTP, SASL's command, or what
// gssproxyd accept prints. What follows on the line is not the token's.
var header = regexp.MustCompile(`(?im)(?:\b(?:Negotiate|NTLM|GSSAPI|GSS-SPNEGO)|^token:)[ \t]+([A-Za-z0-9+/_-]{12,}={0,2})`)

// bare is such a header without a token.
var bare = regexp.MustCompile(`(?im)^[<> \t]*(?:WWW-|Proxy-)?Authenticat[a-z-]*:[ \t]*Negotiate[ \t]*\r?$`)

// Tokens finds the tokens in what somebody has copied: octets as they are; or text with a token in
// base64 or hexadecimal, on as many lines as it takes; or with header lines that have tokens in
// base64, among any others.
func Tokens(input []byte) ([][]byte, error) {
	text := string(input)
	if !isText(input[:min(len(input), 8)]) { // tokens begin otherwise, but for those of NTLM
		return [][]byte{input}, nil
	}
	if found := header.FindAllStringSubmatch(text, -1); found != nil {
		tokens := make([][]byte, len(found))
		for i, m := range found {
			var err error
			if tokens[i], err = fromBase64(m[1]); err != nil {
				return nil, fmt.Errorf("the token of header %d: %w", i+1, err)
			}
		}
		return tokens, nil
	}
	if !isText(input) {
		return [][]byte{input}, nil
	}
	if bare.MatchString(text) {
		return nil, errors.New("the header has no token: with it a server asks for one. The client's answer is in a header Authorization of the next request")
	}
	text = strings.Join(strings.Fields(text), "")
	switch {
	case text == "":
		return nil, errors.New("there is no token: base64, hexadecimal, octets, or a header with one is expected")
	case isHex(text):
		b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimPrefix(text, "0x"), ":", ""))
		if err != nil {
			return nil, fmt.Errorf("it looks like hexadecimal, and is not: %w", err)
		}
		return [][]byte{b}, nil
	}
	b, err := fromBase64(text)
	return [][]byte{b}, err
}

// Base64 reads a line with one token in base64, be it a header's.
func Base64(line string) ([]byte, error) {
	if m := header.FindStringSubmatch(line); m != nil {
		line = m[1]
	}
	return fromBase64(strings.TrimSpace(line))
}

// isText reports whether all octets are those of printable ASCII and its line ends.
func isText(b []byte) bool {
	for _, c := range b {
		if (c < ' ' || c > '~') && c != '\n' && c != '\r' && c != '\t' {
			return false
		}
	}
	return true
}

var hexDigits = regexp.MustCompile(`^(?:0x)?[0-9a-fA-F:]+$`)

// isHex reports whether a text without blanks is in hexadecimal. It could be base64 as well, were it
// not that of no token.
func isHex(text string) bool { return hexDigits.MatchString(text) }

// fromBase64 reads base64 in either alphabet, with or without its padding.
func fromBase64(text string) ([]byte, error) {
	text = strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(text, "="))
	if at := notBase64.FindStringIndex(text); at != nil {
		return nil, fmt.Errorf("the token is not base64: octet %d is %q", at[0], text[at[0]:at[1]])
	}
	b, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil {
		return nil, errors.New("the token is not base64 to its end: a part of it is missing")
	}
	return b, nil
}

var notBase64 = regexp.MustCompile(`[^A-Za-z0-9+/]`)
