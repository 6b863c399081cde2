package reason

// What has come from a key store, or is said to have, and is refused; and calls for want of it.
const (
	DeliveryMalformed ID = "delivery-malformed"
	DeliveryUnsigned  ID = "delivery-unsigned"
	DeliveryElsewhere ID = "delivery-elsewhere"
	DeliveryReplayed  ID = "delivery-replayed"
	DeliveryNotOpened ID = "delivery-not-opened"
	DeliveryRules     ID = "delivery-rules"

	NoDelivery    ID = "no-delivery"
	KeysWithdrawn ID = "keys-withdrawn"
)

// Delivery documents them.
var Delivery = []Doc{
	{DeliveryMalformed, "what has come from a key store is nothing that a key store sends", "see which versions the store and this daemon have; a file below stores in the state directory that was damaged can be removed, and is got again"},
	{DeliveryUnsigned, "what has come from a key store is not signed by a signer that the configuration names", "compare signer of the store's section with what keystored master show prints: when the store has changed its signer, the new line is missing here. If the right one is there, somebody in between, or the helper process, has made it up"},
	{DeliveryElsewhere, "what has come from a key store is signed, and for another host or principal", "compare host of the store's section with the name that this host is enrolled by; if that is right, somebody has copied it here"},
	{DeliveryReplayed, "what has come from a key store is older than what has come before", "nothing that an attacker gains by; if the store was restored from a backup, it has to begin a new epoch (keystored restore)"},
	{DeliveryNotOpened, "what has come from a key store is sealed to another recipient than this host's, or has no keys in it", "enrol the host's recipient in the store (gssproxyd keytab recipient prints it)"},
	{DeliveryRules, "the policy of a key store's entry has a rule that this daemon does not know", "correct the policy of the entry in the store, or update this daemon"},
	{NoDelivery, "there are no keys yet of an entry of a key store that the service is to have them of", "gssproxyd status says whether the store answers, and what it says; the host must be enrolled there, and the entry's policy must name it"},
	{KeysWithdrawn, "the key store has taken the keys that the service has of it away from this host", "the text has the store's words; an administrator of the store knows why (keystored show)"},
}
