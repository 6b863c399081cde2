package reason

// What a key store does not believe, and why a host does not get keys of it.
const (
	StoreRecordBad       ID = "store-record-bad"
	StoreRolledBack      ID = "store-rolled-back"
	StoreKeyringUnsigned ID = "store-keyring-unsigned"
	StoreKeyringOld      ID = "store-keyring-old"
	StoreKeyringSealed   ID = "store-keyring-sealed"
	StoreNoRight         ID = "store-no-right"
	StoreDisabled        ID = "store-disabled"
	StoreDeleted         ID = "store-deleted"
)

// Store documents refusals of a key store.
var Store = []Doc{
	{StoreRecordBad, "a record of the key store was not sealed by the store for its place, or was changed", "somebody has written in the backend who is not the store, or it is damaged: find out who can, then restore a backup (keystored restore)"},
	{StoreRolledBack, "a record of the key store is older than one that was seen, or gone", "the backend was put back to an earlier state, or somebody has put an old record there; if the earlier state is wanted, have keystored restore begin a new epoch with it"},
	{StoreKeyringUnsigned, "the keyring of the key store is not signed by a signer that is configured", "somebody has put another keyring into the backend, or the signer in the configuration is another store's; compare it with that of the other instances"},
	{StoreKeyringOld, "the keyring of the key store is older than one that was seen, or gone", "the backend was put back to an earlier state; if that is wanted, have keystored restore begin a new epoch with it"},
	{StoreKeyringSealed, "the keyring of the key store is not sealed to this instance", "run keystored master grant with this instance's recipient on an instance that can open it, or with a recovery identity"},
	{StoreNoRight, "the policy of the entry does not give its keys to the host, or the host is not enrolled any more", "look at keystored show PRINCIPAL and keystored host list; keystored policy names the hosts"},
	{StoreDisabled, "the entry is disabled, so no host is to use its keys", "the text says who disabled it and why; keystored enable takes that back"},
	{StoreDeleted, "the entry was deleted from the key store, so no host has keys of it", "take it out of the host's configuration, or import the keys again"},
}
