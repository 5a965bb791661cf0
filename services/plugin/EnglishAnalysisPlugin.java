package searchloop;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.function.Predicate;
import java.util.regex.Pattern;
import java.util.function.Supplier;
import java.util.function.UnaryOperator;
import org.apache.lucene.analysis.Analyzer;
import org.apache.lucene.analysis.CharArraySet;
import org.apache.lucene.analysis.FilteringTokenFilter;
import org.apache.lucene.analysis.TokenStream;
import org.apache.lucene.analysis.email.UAX29URLEmailTokenizer;
import org.apache.lucene.analysis.en.EnglishAnalyzer;
import org.apache.lucene.analysis.en.EnglishMinimalStemFilter;
import org.apache.lucene.analysis.en.EnglishPossessiveFilter;
import org.apache.lucene.analysis.en.KStemFilter;
import org.apache.lucene.analysis.en.PorterStemFilter;
import org.apache.lucene.analysis.miscellaneous.ASCIIFoldingFilter;
import org.apache.lucene.analysis.miscellaneous.SetKeywordMarkerFilter;
import org.apache.lucene.analysis.pattern.PatternCaptureGroupTokenFilter;
import org.apache.lucene.analysis.snowball.SnowballFilter;
import org.apache.lucene.analysis.tokenattributes.CharTermAttribute;
import org.elasticsearch.Build;
import org.elasticsearch.client.internal.node.NodeClient;
import org.elasticsearch.cluster.node.DiscoveryNodes;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.features.NodeFeature;
import org.elasticsearch.index.analysis.AbstractIndexAnalyzerProvider;
import org.elasticsearch.index.analysis.AbstractTokenFilterFactory;
import org.elasticsearch.index.analysis.Analysis;
import org.elasticsearch.index.analysis.AnalyzerProvider;
import org.elasticsearch.index.analysis.PreBuiltAnalyzerProviderFactory;
import org.elasticsearch.index.analysis.PreConfiguredTokenFilter;
import org.elasticsearch.index.analysis.PreConfiguredTokenizer;
import org.elasticsearch.index.analysis.TokenFilterFactory;
import org.elasticsearch.indices.analysis.AnalysisModule.AnalysisProvider;
import org.elasticsearch.indices.analysis.PreBuiltCacheFactory.CachingStrategy;
import org.elasticsearch.plugins.ActionPlugin;
import org.elasticsearch.plugins.AnalysisPlugin;
import org.elasticsearch.plugins.Plugin;
import org.elasticsearch.rest.RestChannel;
import org.elasticsearch.rest.RestHandler;
import org.elasticsearch.rest.RestRequest;
import org.elasticsearch.rest.RestResponse;
import org.elasticsearch.rest.RestStatus;
import org.elasticsearch.xcontent.XContentBuilder;
import org.tartarus.snowball.ext.EnglishStemmer;

/**
 * Gives the small Elasticsearch of the tests what a full one has by default and searchloop's mappings name: the analyzer
 * `english`, the common English token filters, and the answer to `GET /`. With security switched on, the index that holds
 * users and API keys names three more parts, for the addresses of users: `uax_url_email`, `pattern_capture`, `unique`.
 *
 * The distribution for integration tests holds the Lucene classes, but not the module `analysis-common` that gives them
 * names, nor `rest-root`. Names, defaults and settings here are those of the full distribution, so one mapping serves both.
 */
public final class EnglishAnalysisPlugin extends Plugin implements AnalysisPlugin, ActionPlugin {

    /** English stemmers by the names that the filter `stemmer` takes in its setting `language`. */
    private static UnaryOperator<TokenStream> stemmer(String language) {
        return switch (language.toLowerCase(Locale.ROOT)) {
            case "english", "porter" -> PorterStemFilter::new;
            case "porter2" -> input -> new SnowballFilter(input, new EnglishStemmer());
            case "light_english", "kstem" -> KStemFilter::new;
            case "minimal_english" -> EnglishMinimalStemFilter::new;
            case "possessive_english" -> EnglishPossessiveFilter::new;
            default -> throw new IllegalArgumentException("stemmer language [" + language
                + "] is not in this small Elasticsearch (it has: english, porter2, light_english, minimal_english, "
                + "possessive_english); use a full one");
        };
    }

    private static AnalysisProvider<TokenFilterFactory> filter(UnaryOperator<TokenStream> change, boolean normalizes) {
        return (index, environment, name, settings) -> factory(name, change, normalizes);
    }

    private static TokenFilterFactory factory(String name, UnaryOperator<TokenStream> change, boolean normalizes) {
        return new AbstractTokenFilterFactory(name) {
            @Override
            public TokenStream create(TokenStream input) {
                return change.apply(input);
            }

            @Override
            public TokenStream normalize(TokenStream input) {
                return normalizes ? change.apply(input) : input;
            }
        };
    }

    @Override
    public Map<String, AnalysisProvider<AnalyzerProvider<? extends Analyzer>>> getAnalyzers() {
        return Map.of("english", (index, environment, name, settings) -> {
            CharArraySet stopwords = Analysis.parseStopWords(environment, settings, EnglishAnalyzer.getDefaultStopSet());
            CharArraySet unstemmed = Analysis.parseStemExclusion(settings, CharArraySet.EMPTY_SET);
            EnglishAnalyzer analyzer = new EnglishAnalyzer(stopwords, unstemmed);
            return new AbstractIndexAnalyzerProvider<EnglishAnalyzer>(name) {
                @Override
                public EnglishAnalyzer get() {
                    return analyzer;
                }
            };
        });
    }

    @Override
    public List<PreBuiltAnalyzerProviderFactory> getPreBuiltAnalyzerProviderFactories() {
        return List.of(new PreBuiltAnalyzerProviderFactory("english", CachingStrategy.LUCENE, EnglishAnalyzer::new));
    }

    @Override
    public Map<String, AnalysisProvider<TokenFilterFactory>> getTokenFilters() {
        Map<String, AnalysisProvider<TokenFilterFactory>> filters = new LinkedHashMap<>();
        filters.put("porter_stem", filter(PorterStemFilter::new, false));
        filters.put("kstem", filter(KStemFilter::new, false));
        filters.put("asciifolding", (index, environment, name, settings) -> {
            boolean keepOriginal = settings.getAsBoolean("preserve_original", false);
            return factory(name, input -> new ASCIIFoldingFilter(input, keepOriginal), keepOriginal == false);
        });
        filters.put("stemmer", (index, environment, name, settings) ->
            factory(name, stemmer(settings.get("language", settings.get("name", "english"))), false));
        filters.put("keyword_marker", AnalysisPlugin.requiresAnalysisSettings((index, environment, name, settings) -> {
            CharArraySet keywords = Analysis.getWordSet(environment, settings, "keywords");
            if (keywords == null) {
                throw new IllegalArgumentException("token filter [" + name + "] needs `keywords` or `keywords_path`");
            }
            return factory(name, input -> new SetKeywordMarkerFilter(input, keywords), false);
        }));
        filters.put("pattern_capture", AnalysisPlugin.requiresAnalysisSettings((index, environment, name, settings) -> {
            Pattern[] patterns = settings.getAsList("patterns").stream().map(Pattern::compile).toArray(Pattern[]::new);
            boolean keepOriginal = settings.getAsBoolean("preserve_original", true);
            return factory(name, input -> new PatternCaptureGroupTokenFilter(input, keepOriginal, patterns), false);
        }));
        return filters;
    }

    @Override
    public List<PreConfiguredTokenizer> getPreConfiguredTokenizers() {
        return List.of(PreConfiguredTokenizer.singleton("uax_url_email", UAX29URLEmailTokenizer::new));
    }

    /** Passes each term once, wherever it stands. */
    private static final class Unique extends FilteringTokenFilter {
        private final CharTermAttribute term = addAttribute(CharTermAttribute.class);
        private final CharArraySet seen = new CharArraySet(8, false);

        Unique(TokenStream input) {
            super(input);
        }

        @Override
        protected boolean accept() {
            return seen.add(term.toString());
        }

        @Override
        public void reset() throws IOException {
            super.reset();
            seen.clear();
        }
    }

    @Override
    public List<PreConfiguredTokenFilter> getPreConfiguredTokenFilters() {
        List<PreConfiguredTokenFilter> filters = new ArrayList<>();
        filters.add(PreConfiguredTokenFilter.singleton("porter_stem", false, PorterStemFilter::new));
        filters.add(PreConfiguredTokenFilter.singleton("kstem", false, KStemFilter::new));
        filters.add(PreConfiguredTokenFilter.singleton("stemmer", false, PorterStemFilter::new));
        filters.add(PreConfiguredTokenFilter.singleton("unique", false, Unique::new));
        filters.add(PreConfiguredTokenFilter.singleton("asciifolding", true, ASCIIFoldingFilter::new));
        return filters;
    }

    @Override
    public Collection<RestHandler> getRestHandlers(
        RestHandlersServices services, Supplier<DiscoveryNodes> nodes, Predicate<NodeFeature> features) {
        return List.of(new Root(services.settings(), nodes));
    }

    /** Answers `GET /` and `HEAD /` as the full distribution does; clients ask it who the server is. */
    private record Root(Settings settings, Supplier<DiscoveryNodes> nodes) implements RestHandler {
        @Override
        public List<Route> routes() {
            return List.of(new Route(RestRequest.Method.GET, "/"), new Route(RestRequest.Method.HEAD, "/"));
        }

        @Override
        public void handleRequest(RestRequest request, RestChannel channel, NodeClient client) throws IOException {
            Build build = Build.current();
            try (XContentBuilder json = channel.newBuilder()) {
                json.startObject();
                json.field("name", nodes.get().getLocalNode().getName());
                json.field("cluster_name", settings.get("cluster.name", "elasticsearch"));
                json.startObject("version");
                json.field("number", build.qualifiedVersion()).field("build_flavor", build.flavor());
                json.field("build_type", build.type().displayName()).field("build_hash", build.hash());
                json.field("build_date", build.date()).field("build_snapshot", build.isSnapshot());
                json.field("lucene_version", org.apache.lucene.util.Version.LATEST.toString());
                json.field("minimum_wire_compatibility_version", build.minWireCompatVersion());
                json.field("minimum_index_compatibility_version", build.minIndexCompatVersion());
                json.endObject().field("tagline", "You Know, for Search").endObject();
                channel.sendResponse(new RestResponse(RestStatus.OK, json));
            }
        }
    }
}
