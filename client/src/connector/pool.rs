pub(crate) struct ChannelPool;
