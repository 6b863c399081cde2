package reason

// What a key store answers hosts and administrators who ask it for what they may not have, or cannot.
const (
	StoreCertificate  ID = "store-certificate"
	StoreNotEnrolled  ID = "store-not-enrolled"
	StoreRate         ID = "store-rate"
	StoreRequest      ID = "store-request"
	StoreNoEntry      ID = "store-no-entry"
	StoreExists       ID = "store-exists"
	StoreNotPermitted ID = "store-not-permitted"
	StoreConflict     ID = "store-conflict"
	StoreUnavailable  ID = "store-unavailable"
)

// StoreAPI documents them.
var StoreAPI = []Doc{
	{StoreCertificate, "the certificate that a client of the key store has shown is not believed", "the text says why: it has expired, was revoked, names no one or is of another authority than client_ca. Give the client a certificate of that authority with a DNS or URI name; for a revocation list that is out of date, bring a newer one"},
	{StoreNotEnrolled, "no host is enrolled in the key store by a name in this certificate", "enrol it: keystored host add NAME --recipient R, where gssproxyd keytab recipient on the host prints R"},
	{StoreRate, "too much was asked of the key store at a time", "wait, and look at what asks: a host has one watch at a time, and asks again when it is answered"},
	{StoreRequest, "what was asked is not as docs/keystore.md says", "the text says what was expected; look for a client of another version, or for what else connects there"},
	{StoreNoEntry, "the key store has no entry of this principal", "look for a typo, with its realm: keystored list shows what there is. Keys come in with keystored import"},
	{StoreExists, "there is one of this name already", "choose another name, or remove the one that is there first"},
	{StoreNotPermitted, "the administrator may not do this with this principal", "what he may is in the section [admin/NAME] of keystored.conf: certificate or uid, principals and verbs"},
	{StoreConflict, "what the key store has does not go with what was asked", "the text names what is there: keys of the same version that are others, or a rotation that has just asked the KDC. Nothing was changed"},
	{StoreUnavailable, "the key store cannot do this now", "the text has the error: of the backend, or of the disk. Hosts go on with what they have; try again when it is mended"},
}
